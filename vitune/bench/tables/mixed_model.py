"""How certain a difference between two methods is: a mixed model over tasks, seeds and images.

A score varies with the seed of its run, with the test images that happen to be in the set, and
from task to task. Two questions are answered separately:

- **On these tasks**: what would the mean over exactly these tasks be with other seeds and other
  test images? Tasks are fixed; seeds and images are random.
- **On tasks like these**: what would it be on other tasks of the same kind? Tasks are random as
  well. This is the broader claim, and it needs several tasks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vitune.errors import VituneError

MIN_WILCOXON_TASKS = 6
"""Below 6 pairs the two-sided signed-rank test cannot reach p < 0.05 whatever the data."""
MIN_SAMPLED_TASKS = 3
"""Fewer tasks are no sample: two give an interval of some 13 standard errors to either side."""
LEVEL = 0.95
GROUPS = "groups of images"

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """One method's scores on one task.

    Shapes: correct (k, n); groups (n,).

    Args:
        accuracies: one per seed, k of them, in [0, 1].
        num_images: n, the number of images each was counted on; None if unknown.
        correct: whether each run was right on each image, in the split's order; None if it was not
            kept, or if `accuracies` are not those of the last epoch.
        images: identifies the set of images (a content hash). Two methods are compared image by
            image if both have the same.
        seeds: of the runs. Two methods are compared seed by seed if both have the same, because a
            seed gives both the same order of images and the same initial head.
        groups: a number per image, equal for images of one patient, object or scene, which are
            drawn together; None if each image is on its own.
    """

    accuracies: tuple[float, ...]
    num_images: int | None = None
    correct: Bools | None = None
    images: str = ""
    seeds: tuple[int, ...] = ()
    groups: Ints | None = None

    @property
    def total(self) -> Fraction:
        """Mean accuracy as an exact fraction, so that equal counts are equal."""
        exact = [exact_accuracy(value, self.num_images) for value in self.accuracies]
        return sum(exact, Fraction()) / len(exact)

    @cached_property
    def sampled(self) -> Floats | None:
        """The values of what was drawn at random: of each image or, where they are known, group.

        A group's value is mean + G/n Σ_{its images} (correct - mean). The variance of these values'
        mean is then the cluster-robust one of `vitune.ops.paired`, also for groups of unequal size.

        Shapes: (k, n), or (k, G) for G groups.
        """
        if self.correct is None:
            return None
        right = self.correct.astype(float)
        if self.groups is None:
            return right
        names, place = np.unique(self.groups, return_inverse=True)
        mean = right.mean(1, keepdims=True)
        sums = np.zeros((len(right), len(names)))
        np.add.at(sums.T, place, (right - mean).T)
        return mean + sums * len(names) / right.shape[1]


@dataclass(frozen=True)
class Interval:
    """A 95 % interval with its two-sided test against 0.

    Args:
        low, high: in accuracy (0.01 is a percentage point).
        p_value: of the t statistic that the interval comes from.
        degrees_of_freedom: of its t distribution.
        over: what is treated as random: "seeds", "images" or GROUPS, "tasks".
    """

    low: float
    high: float
    p_value: float
    degrees_of_freedom: float
    over: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """Method `first` minus method `second`, in accuracy (0.01 is a percentage point).

    Args:
        mean: over the tasks that both have.
        num_tasks: how many those are.
        on_these: the interval for exactly these tasks; None if neither seeds nor images can be
            taken into account.
        on_others: the interval for tasks like these; None below MIN_SAMPLED_TASKS, or where all
            tasks' differences are equal.
        wilcoxon_p: of Wilcoxon's signed-rank test over tasks, two-sided, the test that goes with
            `on_others`; None below MIN_WILCOXON_TASKS.
        holm_p, wilcoxon_holm_p: `on_these.p_value` and `wilcoxon_p` after Holm's correction over
            all comparisons of a table; None until `corrected` has seen them all.
    """

    first: str
    second: str
    mean: float
    num_tasks: int
    on_these: Interval | None
    on_others: Interval | None
    wilcoxon_p: float | None
    holm_p: float | None = None
    wilcoxon_holm_p: float | None = None


def exact_accuracy(accuracy: float, num_images: int | None) -> Fraction:
    """The accuracy as correct / images, or a nearby fraction if it is no such count."""
    if num_images:
        num_correct = round(accuracy * num_images)
        if abs(accuracy * num_images - num_correct) < 1e-3:
            return Fraction(num_correct, num_images)
    return Fraction(accuracy).limit_denominator(10**6)


def difference(first: str, second: str, tasks: Sequence[tuple[Runs, Runs]]) -> Difference:
    """The mean difference over tasks with its intervals and test.

    Args:
        tasks: what each method scored, one pair per task.

    Raises:
        VituneError: no task in common, or a task without a run.
    """
    if not tasks:
        raise VituneError(f"methods: got {first!r} and {second!r} without a task in common.")
    if not all(runs.accuracies for pair in tasks for runs in pair):
        raise VituneError(
            f"methods: got a task without a run of {first!r} or {second!r}, expected one each."
        )
    gaps = np.array([float(a.total - b.total) for a, b in tasks], np.float64)  # (tasks,)
    return Difference(
        first=first,
        second=second,
        mean=math.fsum(gaps) / len(gaps),
        num_tasks=len(gaps),
        on_these=interval_on_these(tasks),
        on_others=interval_on_others(gaps),
        wilcoxon_p=wilcoxon(gaps),
    )


def interval_on_these(tasks: Sequence[tuple[Runs, Runs]]) -> Interval | None:
    """The 95 % interval of the mean difference over exactly these tasks.

    With d the mean over T tasks of the differences, its variance is
    (1/T²) Σ_t (S_t + I_t - E_t): S_t = s²/k of the k seeds' differences, I_t of the images'
    differences, and E_t of what seeds and images share, which both S and I hold. That is the
    random-effects analysis of variance of seeds crossed with images, of paired differences. Where
    the methods ran other seeds, S_t and E_t are sums over the two, which are then independent.
    Variances are not pooled over methods or tasks, because they differ by two orders of magnitude
    between them; Satterthwaite's degrees of freedom account for how few seeds each comes from.

    Images of one group are drawn together: where groups are known, "images" means groups.

    Where correctness by image was not kept, I_t is p(1 - p)/n of each method, which is too large
    rather than too small, and E is left out. If either method has a single seed, the interval
    accounts for images only; if image counts are unknown, for seeds only, and if those do not
    differ at all, there is none.

    Source: Satterthwaite 1946; Searle, Casella, McCulloch, "Variance Components", 1992, chapter 4.
    """
    over = _random_parts(tasks)
    if not over:
        return None
    parts = [_parts(first, second, over) for first, second in tasks]
    of_images = math.fsum(part.images for part in parts)
    of_seeds = math.fsum(part.seeds - part.shared for part in parts)
    variance = of_images + max(of_seeds, 0.0)
    if over == ("seeds",) and not variance:  # equal seeds of unknown images say nothing of chance
        return None
    mean = math.fsum(float(a.total - b.total) for a, b in tasks) / len(tasks)
    spread = math.fsum(part.uncertainty for part in parts)
    freedom = variance**2 / spread if spread else math.inf
    is_grouped = any(runs.groups is not None for pair in tasks for runs in pair)
    drawn = tuple(GROUPS if is_grouped and what == "images" else what for what in over)
    return _interval(mean, math.sqrt(variance) / len(tasks), max(freedom, 1.0), drawn)


def interval_on_others(gaps: Floats) -> Interval | None:
    """The 95 % t interval of the mean over tasks that these are a sample of.

    All three causes make the differences scatter over tasks, so their standard deviation includes
    seeds and images as well. Differences that are all equal tell of no scatter: there is none.

    Shapes: gaps (tasks,).
    """
    if len(gaps) < MIN_SAMPLED_TASKS or np.allclose(gaps, gaps[0], rtol=1e-9, atol=0.0):
        return None
    error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    return _interval(float(gaps.mean()), error, len(gaps) - 1, ("tasks", "seeds", "images"))


def wilcoxon(gaps: Floats) -> float | None:
    """Two-sided p of the signed-rank test that the differences are symmetric about 0."""
    if len(gaps) < MIN_WILCOXON_TASKS:
        return None
    if not np.any(gaps):
        return 1.0
    from scipy.stats import wilcoxon as signed_rank

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ties and zeros only switch to the normal approximation
        return float(signed_rank(gaps).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: max over those no larger of (m - place) p, at most 1.

    A comparison is significant at level α if its adjusted value is below α; the chance of any false
    one is then at most α.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, (len(p_values) - place) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted


@dataclass(frozen=True)
class _Parts:
    """Variances of one task's difference.

    Args:
        images: of the test images.
        seeds: of the seeds, both methods together.
        shared: what `images` and `seeds` both include.
        uncertainty: Σ (variance component)² / its degrees of freedom.
    """

    images: float
    seeds: float
    shared: float
    uncertainty: float


def _random_parts(tasks: Sequence[tuple[Runs, Runs]]) -> tuple[str, ...]:
    every = [runs for pair in tasks for runs in pair]
    seeds = all(len(runs.accuracies) > 1 for runs in every)
    images = all((runs.num_images or 0) > 1 for runs in every)
    images &= all(runs.sampled is None or runs.sampled.shape[1] > 1 for runs in every)
    return (("seeds",) if seeds else ()) + (("images",) if images else ())


def _parts(first: Runs, second: Runs, over: tuple[str, ...]) -> _Parts:
    images = seeds = shared = uncertainty = 0.0
    if "images" in over:
        images, freedom = _image_variance(first, second)
        uncertainty += images**2 / freedom
    if "seeds" in over:
        for accuracies, right in _seed_sides(first, second):
            own = float(np.var(accuracies, ddof=1)) / len(accuracies)
            seeds += own
            shared += _rest_variance(right) if right is not None and "images" in over else 0.0
            uncertainty += own**2 / (len(accuracies) - 1)
    return _Parts(images, seeds, shared, uncertainty)


def _seed_sides(first: Runs, second: Runs) -> list[tuple[Floats, Floats | None]]:
    """What varies over seeds, by seed and by seed and image: differences, or else both sides."""
    accuracies = [np.array(runs.accuracies) for runs in (first, second)]
    right = [runs.sampled for runs in (first, second)]
    if not first.seeds or first.seeds != second.seeds:
        return list(zip(accuracies, right, strict=True))
    a, b = right
    gaps = a - b if a is not None and b is not None and _same_images(first, second) else None
    return [(accuracies[0] - accuracies[1], gaps)]


def _same_images(first: Runs, second: Runs) -> bool:
    a, b = first.sampled, second.sampled
    same = first.images == second.images
    return same and a is not None and b is not None and a.shape[1] == b.shape[1]


def _image_variance(first: Runs, second: Runs) -> tuple[float, float]:
    """Variance of a task's difference over its images, and the degrees of freedom behind it."""
    a, b = first.sampled, second.sampled
    if a is None or b is None:
        return sum(map(_binomial, (first, second))), math.inf
    if _same_images(first, second):
        gaps = a.mean(0) - b.mean(0)  # (n,)
        return float(gaps.var(ddof=1)) / len(gaps), len(gaps) - 1
    own = [float(c.mean(0).var(ddof=1)) / c.shape[1] for c in (a, b)]
    return sum(own), min(a.shape[1], b.shape[1]) - 1


def _binomial(runs: Runs) -> float:
    """p(1 - p)/n, which the variance of a mean over images does not exceed."""
    share = float(runs.total)
    return share * (1 - share) / (runs.num_images or 1)


def _rest_variance(right: Floats) -> float:
    """Variance of the mean that is neither the seeds' own nor the images': the residual's.

    Shapes: right (k, n).
    """
    num_seeds, num_images = right.shape
    rest = right - right.mean(0) - right.mean(1, keepdims=True) + right.mean()
    freedom = (num_seeds - 1) * (num_images - 1)
    return float(np.square(rest).sum()) / freedom / (num_seeds * num_images)


def _interval(mean: float, error: float, freedom: float, over: tuple[str, ...]) -> Interval:
    from scipy.stats import norm, t

    student = norm() if math.isinf(freedom) else t(freedom)
    half = float(student.ppf((1 + LEVEL) / 2)) * error
    distance = abs(mean) / error if error else math.inf if mean else 0.0
    return Interval(mean - half, mean + half, 2 * float(student.sf(distance)), freedom, over)
