"""RLRR's step against four references, each stating the optimisations of both sides.

A ratio to the computation as published credits RLRR with what any user of timm has anyway (a fused
attention kernel) and what vitune offers every method (the lean step). So the textbook version gets
these one after the other, and in the last reference vitune's product in another number format is
taken away too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitune.bench.speed.ratios import step_ratio

TEXTBOOK = "rlrr-textbook"
FUSED, LEAN = f"{TEXTBOOK}+fused", f"{TEXTBOOK}+fused+lean"
TEXTBOOKS = (TEXTBOOK, FUSED, LEAN)

PAIRS = (
    ("as published", "rlrr", TEXTBOOK),
    ("+ fused attention", "rlrr", FUSED),
    ("+ lean step", "rlrr", LEAN),
    ("+ every product exact", "rlrr+exact=true", LEAN),
)
"""The reference's name, RLRR's label and the textbook's."""

HEADS = ("reference", "rlrr gets", "textbook gets", "step", "peak memory", "resident")


@dataclass(frozen=True)
class Against:
    """RLRR against one reference at one batch size and precision.

    Args:
        title: what the reference has beyond the previous one.
        ours, theirs: labels.
        our_means, their_means: the optimisations of each step, in words.
        step: ratio of step times, median over rounds of the ratios within each.
        peak: ratio of peak live memory; None if not measured.
        resident: ratio of resident sizes, including models and libraries; None if not measured.
    """

    title: str
    ours: str
    theirs: str
    our_means: tuple[str, ...]
    their_means: tuple[str, ...]
    step: float
    peak: float | None
    resident: float | None

    @property
    def cells(self) -> tuple[str, ...]:
        """Text under HEADS."""
        return (
            self.title,
            ", ".join(self.our_means),
            ", ".join(self.their_means),
            f"{self.step:.2f}",
            _text(self.peak),
            _text(self.resident),
        )


def references(rows: Sequence[Mapping[str, Any]], batch: int, precision: str) -> Iterator[Against]:
    """Those of the four for which both sides were measured."""
    own = {r["method"]: r for r in rows if (r["batch"], r["precision"]) == (batch, precision)}
    for title, ours, theirs in PAIRS:
        if ours in own and theirs in own:
            mine, other = own[ours], own[theirs]
            yield Against(
                title=title,
                ours=ours,
                theirs=theirs,
                our_means=tuple(mine.get("gets", ())),
                their_means=tuple(other.get("gets", ())),
                step=step_ratio(mine, other),
                peak=_ratio(mine["peak_mib"], other["peak_mib"]),
                resident=_ratio(mine["resident_mib"], other["resident_mib"]),
            )


def _ratio(mine: float | None, other: float | None) -> float | None:
    return None if mine is None or not other else mine / other


def _text(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"
