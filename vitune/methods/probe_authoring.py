"""What an author of a probe imports in addition to `vitune.methods.authoring`."""

from __future__ import annotations

from vitune.methods.core.head_only import HeadOnlyConfig
from vitune.methods.core.solved import (
    CAUTIOUS,
    SAMPLE_RATIO,
    HeadProblem,
    Labelled,
    SolvedConfig,
    SolvedHead,
    folds,
)

__all__ = [
    "CAUTIOUS",
    "SAMPLE_RATIO",
    "HeadOnlyConfig",
    "HeadProblem",
    "Labelled",
    "SolvedConfig",
    "SolvedHead",
    "folds",
]
