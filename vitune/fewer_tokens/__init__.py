"""Fewer tokens for any method: patches dropped in training, or merged along the way."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitune.fewer_tokens.token_plan import TOKENS_HELP, TokenPlan

if TYPE_CHECKING:
    from vitune.fewer_tokens.fitting_in import reduce_tokens
    from vitune.fewer_tokens.reducing import TokenReducer

__all__ = ["TOKENS_HELP", "TokenPlan", "TokenReducer", "reduce_tokens"]

_NEEDING_PYTORCH = {"TokenReducer": "reducing", "reduce_tokens": "fitting_in"}
"""Imported when first asked for: the settings alone, for --help, do not need PyTorch."""


def __getattr__(name: str) -> Any:
    if name in _NEEDING_PYTORCH:
        file = importlib.import_module(f"vitune.fewer_tokens.{_NEEDING_PYTORCH[name]}")
        return getattr(file, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
