"""From cell results to one row per method: means, spreads, ranks, published figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

from vitune.bench.study.cells import CellResult
from vitune.bench.study.lost_runs import Unfinished, count_lost
from vitune.bench.tables.differences import differences_of, ranking_of
from vitune.bench.tables.guards import require_one_config, require_pure, require_same_images
from vitune.bench.tables.mixed_model import Difference, exact_accuracy
from vitune.bench.tables.notes import (
    notes_on_rows,
    notes_on_runs,
    nothing_finished,
    speed_text,
)
from vitune.bench.tables.published import PublishedRow, pretraining_of, published_row, suite_of
from vitune.bench.tables.ranking import Ranking, average_ranks
from vitune.bench.tables.row import BEST_EPOCH, LAST_EPOCH
from vitune.bench.tables.row import Figure as Figure
from vitune.bench.tables.row import TableRow as TableRow
from vitune.report.intervals import mean_and_std

AS_PUBLISHED = "as-published"


@dataclass(frozen=True)
class Table:
    """Rows in the order of the methods, and the tests between them.

    Args:
        tasks: names, in order.
        groups: task names by group, in order; empty if tasks have none or there is only one.
        suite: the published table's name if it contains every task.
        missing: tasks that the suite has and the data root lacked.
        ranking: of the honest rows over tasks; None if it does not apply.
        no_ranking: why not; "" if no ranking is expected.
        speed: presets of the runs, in words.
        notes: sentences a reader must know: single seeds, absent tasks, what is not comparable.
    """

    tasks: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    rows: tuple[TableRow, ...]
    differences: tuple[Difference, ...]
    suite: str | None
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    ranking: Ranking | None = None
    no_ranking: str = ""
    speed: str = "exact"


def make_table(
    results: Iterable[CellResult],
    *,
    split_columns: bool = False,
    missing: Sequence[str] = (),
    unfinished: Unfinished = (),
    pretraining: str | None = None,
) -> Table:
    """The table of final results.

    Args:
        results: of one or more studies; those of stage 1 are skipped, and a run that several of
            them hold counts once. A method keeps its row however many of its runs diverged or
            failed.
        split_columns: give every protocol and backbone its own row instead of refusing a mixture.
        missing: tasks that a data root lacked, to be listed unless another study has them.
        unfinished: runs that are still to come, to be listed unless another study has them.
        pretraining: which published column to compare with; None derives it from the backbone.

    Raises:
        VituneError: nothing finished; two configurations under one name; a mixture of backbones,
            protocols or reported splits without `split_columns`.
    """
    finals = _each_once([r for r in results if r.stage == "final"])
    unfinished = _still_to_come(unfinished, finals)
    done = [r for r in finals if r.status == "done" and r.scores is not None]
    if not done:
        raise nothing_finished(finals, unfinished)
    require_one_config(done)
    require_pure(done, split_columns)
    if not split_columns:
        require_same_images(done)
    tasks = tuple(dict.fromkeys(result.task for result in finals))
    missing = [task for task in dict.fromkeys(missing) if task not in tasks]
    groups = _groups(finals)
    suite = suite_of(tasks)
    lost = _lost_by_row([r for r in finals if r.status != "done"], _by_row(done))
    rows = tuple(
        _row(key, members, lost.get(key, []), unfinished, tasks, groups, suite, pretraining)
        for key, members in _in_order(finals, {**dict.fromkeys(lost, ()), **_by_row(done)})
    )
    rows = _ranked(rows, tasks)
    ranking, no_ranking = ranking_of(rows, tasks)
    return Table(
        tasks=tasks,
        groups=groups,
        rows=rows,
        differences=differences_of(done, rows, tasks),
        suite=suite,
        missing=tuple(missing),
        notes=(
            *notes_on_rows(rows, tasks, missing),
            *notes_on_runs(finals, unfinished),
        ),
        ranking=ranking,
        no_ranking=no_ranking,
        speed=speed_text(done),
    )


def _each_once(results: Sequence[CellResult]) -> list[CellResult]:
    """The results without repetitions; of two on one run, the one with an accuracy counts.

    A run is known by its row, task and seed: the same run of a second study is no second draw.
    """
    found: dict[tuple[str, str, str, str, str, int], CellResult] = {}
    for result in results:
        key = (result.label, result.protocol, str(result.config["backbone"]), result.scored_on,
               result.task, result.seed)  # fmt: skip
        known = found.get(key)
        if known is not None and result.status == known.status == "done":
            require_one_config([known, result])
        if known is None or (result.status == "done") > (known.status == "done"):
            found[key] = result
    return list(found.values())


def _still_to_come(unfinished: Unfinished, results: Sequence[CellResult]) -> Unfinished:
    there = {(result.label, result.task, result.seed) for result in results}
    return [run for run in dict.fromkeys(unfinished) if run not in there]


RowKey = tuple[str, str, str, str]
T = TypeVar("T")


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


def _lost_by_row(
    lost: Sequence[CellResult], known: Iterable[RowKey]
) -> dict[RowKey, list[CellResult]]:
    """Runs without an accuracy, by the row that lacks them."""
    found: dict[RowKey, list[CellResult]] = defaultdict(list)
    for result in lost:
        kinds = (f"{AS_PUBLISHED}: {BEST_EPOCH}", f"{AS_PUBLISHED}: {LAST_EPOCH}")
        for protocol in kinds if result.protocol == AS_PUBLISHED else (result.protocol,):
            own = (result.label, protocol, str(result.config["backbone"]))
            # For a run that could not even be planned, the split it would be scored on is unknown.
            there = [key for key in known if key[:3] == own and not result.split_hashes]
            found[there[0] if there else (*own, result.scored_on)].append(result)
    return found


def _in_order(results: Sequence[CellResult], rows: Mapping[RowKey, T]) -> list[tuple[RowKey, T]]:
    """Rows in the order in which their labels come among the results."""
    order = {label: place for place, label in enumerate(dict.fromkeys(r.label for r in results))}
    return sorted(rows.items(), key=lambda row: order[row[0][0]])


def _row(
    key: RowKey,
    members: Sequence[tuple[CellResult, float]],
    lost_runs: Sequence[CellResult],
    unfinished: Unfinished,
    tasks: Sequence[str],
    groups: Mapping[str, tuple[str, ...]],
    suite: str | None,
    pretraining: str | None,
) -> TableRow:
    first = members[0][0] if members else lost_runs[0]
    lost = count_lost(key[0], lost_runs, unfinished)
    ended = {task for task, runs in lost.items() if runs.num_ended}
    figures = {task: _figure([m for m in members if m[0].task == task]) for task in tasks}
    present = {task: figure for task, figure in figures.items() if figure is not None}
    whole = {task: figure for task, figure in present.items() if task not in ended}
    group_means = {
        name: _mean_of([whole[t].mean for t in inside if t in whole], len(inside))
        for name, inside in groups.items()
    }
    known = [mean for mean in group_means.values() if mean is not None]
    column = pretraining or pretraining_of(first.config)
    paper = published_row(suite, first.config["method"], column) if suite else None
    results = [result for result, _ in members]
    last = [] if key[1].endswith(BEST_EPOCH) else results
    return TableRow(
        label=first.label,
        method=str(first.config["method"]),
        protocol=key[1],
        backbone=key[2],
        scored_on=key[3],
        figures=whole,
        group_means=group_means,
        mean_tasks=_mean_of([figure.mean for figure in whole.values()], len(tasks)),
        mean_groups=_mean_of(known, len(groups)) if groups else None,
        num_parameters=max((r.counts.get("without_head", 0) for r in results), default=None),
        seconds=_average([r.seconds for r in results]),
        peak_mib=max((r.peak_mib for r in results if r.peak_mib is not None), default=None),
        nll=_average([r.scores.nll if r.scores else None for r in last]),
        ece=_average([r.scores.ece if r.scores else None for r in last]),
        drift=_average([_drift(result) for result in last]),
        published=paper,
        gap=_gap(whole, paper),
        survivors={task: figure for task, figure in present.items() if task in ended},
        lost=lost,
        cpu_seconds=_average([r.cpu_seconds for r in results]),
    )


def _figure(members: Sequence[tuple[CellResult, float]]) -> Figure | None:
    if not members:
        return None
    ordered = sorted(members, key=lambda member: member[0].seed)
    values = tuple(accuracy for _, accuracy in ordered)
    exact = [
        exact_accuracy(accuracy, result.scores.num_images if result.scores else None)
        for result, accuracy in ordered
    ]
    mean = sum(exact, Fraction()) / len(exact)
    std = mean_and_std(values)[1]
    return Figure(mean, std, values, tuple(r.seed for r, _ in ordered), ordered[0][0].val)


def _ranked(rows: tuple[TableRow, ...], tasks: Sequence[str]) -> tuple[TableRow, ...]:
    """The rows with their mean rank over the tasks that all of them have."""
    standings = [row.standings for row in rows]
    shared = [task for task in tasks if all(task in own for own in standings)]
    if len(rows) < 2 or not shared:
        return rows
    ranks = average_ranks(
        {str(place): [own[task] for task in shared] for place, own in enumerate(standings)}
    )
    return tuple(replace(row, rank=ranks[str(place)]) for place, row in enumerate(rows))


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
