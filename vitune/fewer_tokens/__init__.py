"""Fewer tokens for any method: patches dropped in training, or merged along the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitune.fewer_tokens.token_plan import TOKENS_HELP, TokenPlan
from vitune.late_imports import late_names

if TYPE_CHECKING:
    from vitune.fewer_tokens.fitting_in import (
        few_patches_notice,
        lost_exits_notice,
        reduce_tokens,
    )
    from vitune.fewer_tokens.reducing import TokenReducer

__all__ = [
    "TOKENS_HELP",
    "TokenPlan",
    "TokenReducer",
    "few_patches_notice",
    "lost_exits_notice",
    "reduce_tokens",
]

_NEEDING_PYTORCH = {
    "reducing": ("TokenReducer",),
    "fitting_in": ("few_patches_notice", "lost_exits_notice", "reduce_tokens"),
}
"""Imported when first asked for: the settings alone, for --help, do not need PyTorch."""

if not TYPE_CHECKING:  # which would let any name pass
    __getattr__ = late_names(__name__, _NEEDING_PYTORCH)
