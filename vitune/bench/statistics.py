"""How sure a difference between two methods is: paired bootstrap and Wilcoxon's signed ranks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitune.errors import VituneError

NUM_RESAMPLES = 10_000
MIN_PAIRS = 6
"""Below 6 pairs the two-sided signed-rank test cannot reach p < 0.05 whatever the data."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Method `first` minus method `second`, in accuracy (0.01 is a percentage point).

    Args:
        mean: over tasks.
        low, high: paired bootstrap 95 % interval of the mean.
        resampled: what was drawn again: "tasks" or "images".
        p_value: of Wilcoxon's signed-rank test over tasks, two-sided; None below MIN_PAIRS tasks.
        num_tasks: that both have.
    """

    first: str
    second: str
    mean: float
    low: float
    high: float
    resampled: str
    p_value: float | None
    num_tasks: int


def difference(
    first: str,
    second: str,
    by_task: Sequence[tuple[float, float]],
    by_image: Sequence[Floats] = (),
    *,
    seed: int = 0,
) -> Difference:
    """The mean difference over tasks with its interval and test.

    With MIN_PAIRS tasks or more, tasks are drawn again (how would it be on other tasks?); with
    fewer, images within each task are (how would it be on other images of these tasks?).

    Args:
        by_task: accuracies of both on each task.
        by_image: per task, (num_images,) difference in correctness, mean over seeds.
        seed: of the draws.

    Raises:
        VituneError: no task in common.
    """
    if not by_task:
        raise VituneError(f"methods: got {first!r} and {second!r} without a task in common.")
    gaps = np.array([a - b for a, b in by_task], np.float64)
    rng = np.random.default_rng(seed)
    over_tasks = len(gaps) >= MIN_PAIRS or not by_image
    if over_tasks:
        draws = _bootstrap(gaps, rng)
    else:
        draws = np.mean([_bootstrap(np.asarray(task), rng) for task in by_image], axis=0)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Difference(
        first=first,
        second=second,
        mean=float(gaps.mean()),
        low=float(low),
        high=float(high),
        resampled="tasks" if over_tasks else "images",
        p_value=wilcoxon(gaps),
        num_tasks=len(gaps),
    )


def wilcoxon(gaps: Floats) -> float | None:
    """Two-sided p of the signed-rank test that the differences are symmetric about 0."""
    if len(gaps) < MIN_PAIRS:
        return None
    if not np.any(gaps):
        return 1.0
    from scipy.stats import wilcoxon as signed_rank

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ties and zeros only switch to the normal approximation
        return float(signed_rank(gaps).pvalue)


def average_ranks(by_method: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean rank over tasks, 1 the best, ties sharing the mean of their places."""
    from scipy.stats import rankdata

    if not by_method:
        return {}
    table = np.array(list(by_method.values()), np.float64)  # (methods, tasks)
    ranks = rankdata(-table, axis=0)
    return dict(zip(by_method, ranks.mean(axis=1).tolist(), strict=True))


def _bootstrap(values: Floats, rng: np.random.Generator) -> Floats:
    """(NUM_RESAMPLES,) means of values drawn with replacement, in bounded memory."""
    if len(values) > 200:  # a mean of many: counts of each distinct value are drawn instead
        levels, counts = np.unique(values, return_counts=True)
        drawn = rng.multinomial(len(values), counts / len(values), NUM_RESAMPLES)
        return np.asarray(drawn @ levels / len(values), np.float64)
    chosen = rng.integers(len(values), size=(NUM_RESAMPLES, len(values)))
    return np.asarray(values[chosen].mean(axis=1), np.float64)
