"""Intruder dimensions: leading singular vectors after training that resemble none from before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vitune.analysis.decomposition import Decomposition, decompose
from vitune.errors import VituneError

Side = Literal["left", "right", "both"]


@dataclass(frozen=True)
class IntruderRule:
    """What counts as an intruder: max_j |cos(u'_i, u_j)| < `cosine` for a leading u'_i.

    Args:
        cosine: in (0, 1].
        side: which singular vectors a summary counts: "left" (outputs), "right" (inputs), "both".
        num_vectors: only u'_1 … u'_n are checked, because the order and direction of vectors with
            nearly equal σ mean little.

    Raises:
        VituneError: a value out of range.

    Source: "LoRA vs Full Fine-tuning: An Illusion of Equivalence" (2024), algorithm 1; the authors'
        code has cosine 0.5, left vectors and 10 of them (`AUTHORS`).
    """

    cosine: float = 0.6
    side: Side = "both"
    num_vectors: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.cosine <= 1:
            raise VituneError(
                f"--intruder-cosine: got {self.cosine!r}, expected a number in (0, 1]."
            )
        if self.side not in ("left", "right", "both"):
            raise VituneError(f"--intruder-side: got {self.side!r}, expected left, right or both.")
        if self.num_vectors < 1:
            raise VituneError(f"num_vectors: got {self.num_vectors!r}, expected at least 1.")


AUTHORS = IntruderRule(cosine=0.5, side="left")
"""The rule of the paper's own code (github.com/reeceshuttle/intruder-dimensions)."""


@dataclass(frozen=True)
class Intruders:
    """How many leading singular vectors after training resemble none from before.

    Args:
        left: how many of u'_1 … u'_n, n = `num_checked`, are intruders; `right` the same for v'.
        num_checked: min(`IntruderRule.num_vectors`, rank of W').
        cosine: the limit below which a vector counts.
    """

    left: int
    right: int
    num_checked: int
    cosine: float

    def on(self, side: Side) -> int:
        """The number on one side or on both together."""
        return {"left": self.left, "right": self.right, "both": self.left + self.right}[side]


def count_intruders(
    before: Tensor, after: Tensor, old: Decomposition, new: Decomposition, rule: IntruderRule
) -> Intruders:
    """The intruders of W' against W; the same number whether the decompositions are exact or not.

    From leading triplets alone, a vector is known not to be an intruder if it resembles a known old
    one by more than the error of both. Any other must be compared with all old vectors: then both
    matrices are decomposed in full, which takes some ten times as long.

    Shapes: before, after (o, i).
    """
    checked = min(rule.num_vectors, new.rank)
    if not (old.exact and new.exact):
        if _all_resemble(old, new, checked, rule.cosine):
            return Intruders(0, 0, checked, rule.cosine)
        old, new = decompose(before), decompose(after)
        checked = min(rule.num_vectors, new.rank)
    return Intruders(
        left=_count(old.left[:, : old.rank], new.left[:, :checked], rule.cosine),
        right=_count(old.right[:, : old.rank], new.right[:, :checked], rule.cosine),
        num_checked=checked,
        cosine=rule.cosine,
    )


def _count(old: Tensor, new: Tensor, cosine: float) -> int:
    """Shapes: old (n, r), new (n, k), orthonormal columns."""
    if not old.shape[1]:
        return new.shape[1]
    return int(((old.T @ new).abs().amax(0) < cosine).sum())


def _all_resemble(old: Decomposition, new: Decomposition, checked: int, cosine: float) -> bool:
    """Whether every leading new vector certainly resembles one of the known old vectors."""
    slack = old.errors[:, None] + new.errors[None, :checked]  # (r, checked)
    for first, second in ((old.left, new.left), (old.right, new.right)):
        angles = (first.T @ second[:, :checked]).abs().clamp(max=1).acos() + slack
        if not bool((angles.amin(0) <= math.acos(cosine)).all()):
            return False
    return True
