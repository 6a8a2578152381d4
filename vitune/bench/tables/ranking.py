"""Ranks of methods over tasks, and which ones a critical difference separates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

LEVEL = 0.05
MIN_METHODS = 3
MIN_TASKS = 5

Scores = Mapping[str, Sequence[float | Fraction]]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """Mean ranks with Friedman's test and Nemenyi's critical difference.

    Args:
        ranks: mean rank over tasks by method, 1 the best, best first.
        num_tasks: number of tasks that all methods have.
        friedman_p: of the test that no method is better than another.
        critical_difference: ranks further apart than this differ at the 5 % level, the chance of
            any false one among all pairs included.
        groups: methods that cannot be told apart: every maximal group of neighbours; one group of
            all where Friedman's test does not reject.
    """

    ranks: Mapping[str, float]
    num_tasks: int
    friedman_p: float
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]

    @property
    def is_ordered(self) -> bool:
        """Whether Friedman's test finds any difference at all."""
        return self.friedman_p < LEVEL


def average_ranks(by_method: Scores) -> dict[str, float]:
    """Mean rank over tasks, 1 is best, ties share the mean of their ranks.

    Args:
        by_method: one score per task. Exact fractions tie exactly; sums of floats may not.
    """
    if not by_method:
        return {}
    return dict(zip(by_method, _ranks(by_method).mean(axis=1).tolist(), strict=True))


def ranking(by_method: Scores) -> Ranking | None:
    """Friedman's test and Nemenyi's comparison of all pairs; None where they do not apply.

    They treat tasks as a sample and use only ranks: below MIN_TASKS tasks the ranks say next to
    nothing, and two methods need no ranking (their interval says more).

    Source: Demšar, "Statistical comparisons of classifiers over multiple data sets", 2006;
        Friedman's statistic with the correction of Iman and Davenport 1980.
    """
    ranks = _ranks(by_method) if by_method else np.zeros((0, 0))
    num_methods, num_tasks = ranks.shape
    if num_methods < MIN_METHODS or num_tasks < MIN_TASKS:
        return None
    means = dict(zip(by_method, ranks.mean(axis=1).tolist(), strict=True))
    ordered = dict(sorted(means.items(), key=lambda item: item[1]))
    p_value = friedman(ranks)
    distance = critical_difference(num_methods, num_tasks)
    groups = groups_within(ordered, distance) if p_value < LEVEL else (tuple(ordered),)
    return Ranking(ordered, num_tasks, p_value, distance, groups)


def friedman(ranks: Floats) -> float:
    """p of Friedman's test by Iman and Davenport's F = (N - 1) χ² / (N (k - 1) - χ²).

    Shapes: ranks (k methods, N tasks), ties share the mean of their ranks.
    """
    from scipy.stats import f

    num_methods, num_tasks = ranks.shape
    between = num_tasks * np.square(ranks.mean(axis=1) - (num_methods + 1) / 2).sum()
    within = np.square(ranks - (num_methods + 1) / 2).sum() / (num_tasks * (num_methods - 1))
    if within == 0:  # every task a tie of all
        return 1.0
    chi_square = float(between / within)
    rest = num_tasks * (num_methods - 1) - chi_square
    if rest <= 1e-9:  # every task orders all methods alike, where F is infinite but p is known
        return float(_num_orders(ranks[:, 0]) ** (1 - num_tasks))
    statistic = (num_tasks - 1) * chi_square / rest
    return float(f.sf(statistic, num_methods - 1, (num_methods - 1) * (num_tasks - 1)))


def _num_orders(ranks: Floats) -> int:
    """In how many orders a task can bring methods of these ranks: k! / Π t! with t methods tied."""
    ties = np.unique(ranks, return_counts=True)[1].tolist()
    return math.factorial(len(ranks)) // math.prod(map(math.factorial, ties))


def critical_difference(num_methods: int, num_tasks: int, level: float = LEVEL) -> float:
    """Nemenyi's q sqrt(k (k + 1) / (6 N)), q of the studentised range over sqrt(2)."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - level, num_methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(num_methods * (num_methods + 1) / (6 * num_tasks))


def groups_within(ranks: Mapping[str, float], distance: float) -> tuple[tuple[str, ...], ...]:
    """The maximal runs of neighbours within `distance`, of two methods or more.

    Args:
        ranks: mean ranks, best first.
    """
    names, places = list(ranks), list(ranks.values())
    found: list[tuple[int, int]] = []
    for start, place in enumerate(places):
        end = max(index for index, other in enumerate(places) if other - place <= distance)
        if end > start and (not found or end > found[-1][1]):
            found.append((start, end))
    return tuple(tuple(names[start : end + 1]) for start, end in found)


def _ranks(by_method: Scores) -> Floats:
    """(methods, tasks) ranks within each task."""
    from scipy.stats import rankdata

    table = np.array([[float(score) for score in row] for row in by_method.values()], np.float64)
    return np.asarray(rankdata(-table, axis=0), np.float64)
