"""Runs that have no accuracy: diverged, failed, or still to be made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from vitune.bench.study.cells import CellResult

Unfinished = Sequence[tuple[str, str, int]]
"""(label, task, seed) of runs that a study still has to make."""


@dataclass(frozen=True)
class Lost:
    """The runs of a method on a task without an accuracy, by what happened.

    Args:
        num_diverged: their loss became non-finite.
        num_failed: they failed with an error; the next run of the study retries them.
        num_pending: not made yet.
    """

    num_diverged: int = 0
    num_failed: int = 0
    num_pending: int = 0

    @property
    def num_ended(self) -> int:
        """Runs that ended without an accuracy."""
        return self.num_diverged + self.num_failed

    def __str__(self) -> str:
        parts = ((self.num_diverged, "diverged"), (self.num_failed, "failed"),
                 (self.num_pending, "to come"))  # fmt: skip
        return ", ".join(f"{number} {what}" for number, what in parts if number)


def count_lost(
    label: str, results: Iterable[CellResult], unfinished: Unfinished
) -> dict[str, Lost]:
    """`Lost` by task of one row.

    Args:
        label: the row's.
        results: of the row, those without an accuracy.
        unfinished: of the whole table.
    """
    ends = Counter((result.task, result.status) for result in results)
    pending = Counter(task for other, task, _ in unfinished if other == label)
    tasks = dict.fromkeys([*(task for task, _ in ends), *pending])
    return {
        task: Lost(ends[task, "diverged"], ends[task, "failed"], pending[task]) for task in tasks
    }


def standing(exact: Fraction | None, num_seeds: int, lost: Lost | None) -> Fraction | None:
    """The value that is ranked: the mean accuracy, or below 0 if a run ended without one.

    A method that loses a run ranks below all that lose none, whatever its other runs reach; among
    such methods the one that loses the smaller share is ahead.
    """
    if lost is not None and lost.num_ended:
        return Fraction(-lost.num_ended, lost.num_ended + num_seeds)
    return exact
