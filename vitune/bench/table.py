"""From cell results to one row a method: means, spreads, ranks, published figures beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from vitune.bench.cells import CellResult
from vitune.bench.published import PublishedRow, pretraining_of, published_row, suite_of
from vitune.bench.scores import unpacked
from vitune.bench.statistics import Difference, average_ranks, difference
from vitune.bench.table_guards import require_one_config, require_pure
from vitune.errors import VituneError
from vitune.report.intervals import mean_and_std

BEST_EPOCH = "best test epoch"
LAST_EPOCH = "last epoch"


@dataclass(frozen=True)
class Figure:
    """One method on one task.

    Args:
        mean: accuracy over seeds, in [0, 1].
        std: sample standard deviation over seeds; None for a single seed.
        values: one a seed, in the order of the seeds.
        seeds: which.
        val: validation accuracy with which the setting was chosen; None where none was.
    """

    mean: float
    std: float | None
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    val: float | None = None

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
        figures: by task; tasks without a finished run are absent.
        group_means: by group, of its tasks; None where one is absent.
        mean_tasks: over all tasks; None where one is absent.
        mean_groups: mean of the group means; None without groups or where one is absent.
        rank: mean rank over tasks that every method of the table has; None for one method alone.
        num_parameters: trained, without the head.
        seconds: of training a run, mean over tasks and seeds; longer on a busy machine.
        cpu_seconds: the same in processor time, which other programs do not lengthen; None on GPUs.
        peak_mib: the largest of any run.
        nll, ece: means over tasks and seeds.
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

    @property
    def mean(self) -> float:
        """Over the tasks that are there."""
        return sum(figure.mean for figure in self.figures.values()) / len(self.figures)

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


@dataclass(frozen=True)
class Table:
    """Rows in the order the methods came in, and the tests between them.

    Args:
        tasks: names, in order.
        groups: task names by group, in order; empty where tasks have none or there is one alone.
        suite: the published table's name where every task stands in it.
        missing: tasks that the suite has and the data root lacked.
        notes: sentences a reader must know: single seeds, absent tasks, what is not comparable.
    """

    tasks: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    rows: tuple[TableRow, ...]
    differences: tuple[Difference, ...]
    suite: str | None
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def make_table(
    results: Iterable[CellResult],
    *,
    split_columns: bool = False,
    missing: Sequence[str] = (),
    pretraining: str | None = None,
) -> Table:
    """The table of final results.

    Args:
        results: of one or more studies; those of stage 1 and those that failed are passed over.
        split_columns: give every protocol and backbone its own row instead of refusing a mixture.
        missing: tasks that a data root lacked, to be named.
        pretraining: which published column to compare with; None tells it from the backbone.

    Raises:
        VituneError: nothing finished; two configurations under one name; a mixture of backbones,
            protocols or reported splits without `split_columns`.
    """
    finals = [r for r in results if r.stage == "final"]
    done = [r for r in finals if r.status == "done" and r.scores is not None]
    if not done:
        raise VituneError("table: got no finished result, expected at least one.")
    require_one_config(done)
    require_pure(done, split_columns)
    tasks = tuple(dict.fromkeys(result.task for result in done))
    groups = _groups(done)
    suite = suite_of(tasks)
    rows = tuple(
        _row(key, members, tasks, groups, suite, pretraining)
        for key, members in _by_row(done).items()
    )
    rows = _ranked(rows, tasks)
    return Table(
        tasks=tasks,
        groups=groups,
        rows=rows,
        differences=_differences(done, rows, tasks),
        suite=suite,
        missing=tuple(missing),
        notes=_notes(rows, tasks, missing, [r for r in finals if r.status != "done"]),
    )


RowKey = tuple[str, str, str, str]


def _by_row(results: Sequence[CellResult]) -> dict[RowKey, list[tuple[CellResult, float]]]:
    """Results with the accuracy that counts, by (label, protocol, backbone, split).

    An as-published run gives two rows: its best test epoch, and its last.
    """
    found: dict[RowKey, list[tuple[CellResult, float]]] = defaultdict(list)
    for result in results:
        assert result.scores is not None
        backbone = str(result.config["backbone"])
        end = (backbone, result.scored_on)
        if result.published is None:
            found[result.label, result.protocol, *end].append((result, result.scores.top1))
            continue
        for which, accuracy in (
            (BEST_EPOCH, result.published["test_max"]),
            (LAST_EPOCH, result.scores.top1),
        ):
            found[result.label, f"{result.protocol}: {which}", *end].append((result, accuracy))
    return found


def _row(
    key: RowKey,
    members: list[tuple[CellResult, float]],
    tasks: Sequence[str],
    groups: Mapping[str, tuple[str, ...]],
    suite: str | None,
    pretraining: str | None,
) -> TableRow:
    first = members[0][0]
    figures = {task: _figure([m for m in members if m[0].task == task]) for task in tasks}
    present = {task: figure for task, figure in figures.items() if figure is not None}
    group_means = {
        name: _mean_of([present[t].mean for t in inside if t in present], len(inside))
        for name, inside in groups.items()
    }
    known = [mean for mean in group_means.values() if mean is not None]
    column = pretraining or pretraining_of(key[2])
    paper = published_row(suite, first.config["method"], column) if suite else None
    results = [result for result, _ in members]
    return TableRow(
        label=first.label,
        method=str(first.config["method"]),
        protocol=key[1],
        backbone=key[2],
        scored_on=first.scored_on,
        figures=present,
        group_means=group_means,
        mean_tasks=_mean_of([figure.mean for figure in present.values()], len(tasks)),
        mean_groups=_mean_of(known, len(groups)) if groups else None,
        num_parameters=max((r.counts.get("without_head", 0) for r in results), default=None),
        seconds=_average([r.seconds for r in results]),
        peak_mib=max((r.peak_mib for r in results if r.peak_mib is not None), default=None),
        nll=_average([r.scores.nll if r.scores else None for r in results]),
        ece=_average([r.scores.ece if r.scores else None for r in results]),
        drift=_average([_drift(result) for result in results]),
        published=paper,
        gap=_gap(present, paper),
        cpu_seconds=_average([r.cpu_seconds for r in results]),
    )


def _figure(members: Sequence[tuple[CellResult, float]]) -> Figure | None:
    if not members:
        return None
    ordered = sorted(members, key=lambda member: member[0].seed)
    values = tuple(accuracy for _, accuracy in ordered)
    mean, std = mean_and_std(values)
    return Figure(mean, std, values, tuple(r.seed for r, _ in ordered), ordered[0][0].val)


def _ranked(rows: tuple[TableRow, ...], tasks: Sequence[str]) -> tuple[TableRow, ...]:
    """The rows with their average rank over the tasks that all of them have."""
    shared = [task for task in tasks if all(task in row.figures for row in rows)]
    if len(rows) < 2 or not shared:
        return rows
    ranks = average_ranks(
        {str(place): [row.figures[t].mean for t in shared] for place, row in enumerate(rows)}
    )
    return tuple(replace(row, rank=ranks[str(place)]) for place, row in enumerate(rows))


def _differences(
    results: Sequence[CellResult], rows: Sequence[TableRow], tasks: Sequence[str]
) -> tuple[Difference, ...]:
    """Every pair of honest rows on the same backbone and split."""
    found = []
    honest = [row for row in rows if row.protocol == "honest"]
    for first, second in combinations(honest, 2):
        shared = [task for task in tasks if task in first.figures and task in second.figures]
        if not shared or (first.backbone, first.scored_on) != (second.backbone, second.scored_on):
            continue
        by_image = [_image_gaps(results, first, second, task) for task in shared]
        found.append(
            difference(
                first.label,
                second.label,
                [(first.figures[t].mean, second.figures[t].mean) for t in shared],
                [gaps for gaps in by_image if gaps is not None]
                if all(gaps is not None for gaps in by_image)
                else (),
            )
        )
    return tuple(found)


def _image_gaps(
    results: Sequence[CellResult], first: TableRow, second: TableRow, task: str
) -> np.ndarray | None:
    """Per image, mean correctness over seeds of one minus the other; None where not stored."""
    means = []
    for row in (first, second):
        stored = [
            unpacked(r.scores.correct, r.scores.num_images)
            for r in results
            if r.scores is not None
            and r.scores.correct
            and (r.label, r.protocol, r.task) == (row.label, row.protocol, task)
            and r.config["backbone"] == row.backbone
        ]
        if not stored:
            return None
        means.append(np.mean(stored, axis=0))
    if means[0].shape != means[1].shape:
        return None
    return np.asarray(means[0] - means[1])


def _groups(results: Sequence[CellResult]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for result in results:
        if result.group is not None:
            groups[result.group][result.task] = None
    if len({result.task for result in results}) < 2:
        return {}
    return {name: tuple(tasks) for name, tasks in groups.items()}


def _gap(figures: Mapping[str, Figure], paper: PublishedRow | None) -> float | None:
    if paper is None:
        return None
    shared = [task for task in figures if task in paper.accuracies]
    return _average([figures[task].mean - paper.accuracies[task] for task in shared])


def _drift(result: CellResult) -> float | None:
    value = (result.retention or {}).get("cka_last")
    return None if value is None else 1 - value


def _mean_of(values: Sequence[float], needed: int) -> float | None:
    return sum(values) / len(values) if values and len(values) == needed else None


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _notes(
    rows: Sequence[TableRow],
    tasks: Sequence[str],
    missing: Sequence[str],
    unfinished: Sequence[CellResult],
) -> tuple[str, ...]:
    notes = []
    single = [row.label for row in rows if row.num_seeds == 1]
    if single:
        notes.append(
            f"One seed only: {', '.join(dict.fromkeys(single))}. A single seed tells no spread; a "
            "small lead may be chance."
        )
    if any(row.scored_on == "val" for row in rows):
        notes.append(
            "Validation accuracy, not test: where there was a grid it also chose the setting."
        )
    if missing:
        notes.append(
            f"The data lacks {len(missing)} tasks, which no mean includes: {', '.join(missing)}."
        )
    if any(BEST_EPOCH in row.protocol for row in rows):
        notes.append(
            "As published means: the best of all test epochs is the figure. It is shown to measure "
            "the inflation, not as a result."
        )
    for row in rows:
        gone = [task for task in tasks if task not in row.figures]
        if gone:
            notes.append(f"{row.label} has no result on {', '.join(gone)}: no mean over tasks.")
    if unfinished:
        notes.append(
            f"{len(unfinished)} runs did not finish, the first {unfinished[0].label} on "
            f"{unfinished[0].task}, seed {unfinished[0].seed}: {unfinished[0].error}"
        )
    return tuple(notes)
