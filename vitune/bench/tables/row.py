"""One method under one protocol, as shown in tables: its figures by task, and its lost runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from vitune.bench.study.lost_runs import Lost, standing
from vitune.bench.tables.published import PublishedRow
from vitune.report.intervals import mean_and_std

BEST_EPOCH = "best test epoch"
LAST_EPOCH = "last epoch"


@dataclass(frozen=True)
class Figure:
    """One method on one task.

    Args:
        exact: mean accuracy over seeds as a fraction of counts, in [0, 1]; ties are decided by it.
        std: sample standard deviation over seeds; None for a single seed.
        values: one per seed, in the order of the seeds.
        seeds: which.
        val: validation accuracy with which the setting was chosen; None where none was.
    """

    exact: Fraction
    std: float | None
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    val: float | None = None

    @property
    def mean(self) -> float:
        """`exact` as a number."""
        return float(self.exact)

    @property
    def num_seeds(self) -> int:
        """How many runs the mean is over."""
        return len(self.values)


@dataclass(frozen=True)
class TableRow:
    """One method under one protocol.

    Args:
        protocol: "honest", or "as-published: best test epoch" / "as-published: last epoch".
        scored_on: "test" or "val".
        figures: by task, where no run ended without an accuracy.
        survivors: by task, figures of the runs that have an accuracy while others have none; shown
            with their number, and part of no mean, difference or rank.
        lost: by task, what became of the runs without an accuracy.
        group_means: by group, of its tasks; None if one is missing.
        mean_tasks: over all tasks; None if one is missing.
        mean_groups: mean of the group means; None without groups or if one is missing.
        rank: mean rank over tasks that every method of the table ran, a method that lost a run
            below all others; None for a single method.
        num_parameters: trained, without the head.
        seconds: of training a run, mean over tasks and seeds; longer on a busy machine.
        cpu_seconds: the same in processor time, which other programs do not lengthen; None on GPUs.
        peak_mib: the largest of any run.
        nll, ece: means over tasks and seeds; None for the best test epoch, whose weights are gone.
        drift: 1 - CKA of the last block's features with the base's, mean; None if not measured.
        published: the paper's row, None if there is none.
        gap: mean over the tasks of measured minus published.
    """

    label: str
    method: str
    protocol: str
    backbone: str
    scored_on: str
    figures: Mapping[str, Figure]
    group_means: Mapping[str, float | None]
    mean_tasks: float | None
    mean_groups: float | None
    rank: float | None = None
    num_parameters: int | None = None
    seconds: float | None = None
    peak_mib: float | None = None
    nll: float | None = None
    ece: float | None = None
    drift: float | None = None
    published: PublishedRow | None = None
    gap: float | None = None
    cpu_seconds: float | None = None
    survivors: Mapping[str, Figure] = field(default_factory=dict)
    lost: Mapping[str, Lost] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether every run that ended has an accuracy, and there is one at least."""
        return bool(self.figures) and not any(lost.num_ended for lost in self.lost.values())

    @property
    def standings(self) -> dict[str, Fraction]:
        """By task what ranks are taken of; see `standing`."""
        tasks = dict.fromkeys([*self.figures, *self.lost])
        found = {task: self._standing(task) for task in tasks}
        return {task: value for task, value in found.items() if value is not None}

    def _standing(self, task: str) -> Fraction | None:
        figure = self.figures.get(task) or self.survivors.get(task)
        if figure is None:
            return standing(None, 0, self.lost.get(task))
        return standing(figure.exact, figure.num_seeds, self.lost.get(task))

    @property
    def mean(self) -> float:
        """Over the tasks that are there; 0 where there are none."""
        return float(self.exact)

    @property
    def exact(self) -> Fraction:
        """The same as a fraction, so that ties are ties."""
        total = sum((f.exact for f in self.figures.values()), Fraction())
        return total / max(1, len(self.figures))

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds of that mean; None for one seed or uneven ones."""
        seeds = {figure.seeds for figure in self.figures.values()}
        if len(seeds) != 1:
            return None
        by_seed = zip(*(figure.values for figure in self.figures.values()), strict=True)
        return mean_and_std([sum(values) / len(values) for values in by_seed])[1]

    @property
    def num_seeds(self) -> int:
        """The fewest seeds of any task."""
        return min((figure.num_seeds for figure in self.figures.values()), default=0)
