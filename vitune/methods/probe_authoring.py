"""What an author of a probe imports in addition to `vitune.methods.authoring`."""

from __future__ import annotations

from vitune.methods.core.head_only import HeadOnlyConfig
from vitune.methods.core.solved import (
    CAUTIOUS,
    HeadProblem,
    Labelled,
    SolvedConfig,
    SolvedHead,
    folds,
)

__all__ = [
    "CAUTIOUS",
    "HeadOnlyConfig",
    "HeadProblem",
    "Labelled",
    "SolvedConfig",
    "SolvedHead",
    "folds",
]
