"""Notes below a table: what is missing, lost or of another kind, and which images are shared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from vitune.bench.study.cells import FORMAT, CellResult
from vitune.bench.study.lost_runs import Unfinished
from vitune.bench.tables.row import BEST_EPOCH, TableRow
from vitune.errors import VituneError
from vitune.methods import METHODS

EXACT = "exact"
MOST_NAMED = 6
MOST_ERRORS = 3


def notes_on_runs(results: Sequence[CellResult], unfinished: Unfinished) -> list[str]:
    """What a reader must know about final runs, finished or not."""
    done = [result for result in results if result.status == "done"]
    return [
        *_lost_notes(results),
        *_unfinished_notes(unfinished),
        *_shared_image_notes(done),
        *_environment_notes(done),
    ]


def notes_on_rows(
    rows: Sequence[TableRow], tasks: Sequence[str], missing: Sequence[str]
) -> list[str]:
    """What a reader must know about the figures: single seeds, missing tasks, which images."""
    notes = []
    single = [row.label for row in rows if row.num_seeds == 1]
    if single:
        notes.append(
            f"One seed only: {', '.join(dict.fromkeys(single))}. A single seed shows no spread; "
            "a small lead may be chance."
        )
    if any(row.scored_on == "val" for row in rows):
        notes.append(
            "Validation accuracy, not test: if there was a grid, it also chose the setting."
        )
    if missing:
        tasks_missing = "1 task" if len(missing) == 1 else f"{len(missing)} tasks"
        notes.append(
            f"The data lacks {tasks_missing}, which no mean includes: {', '.join(missing)}."
        )
    if any(BEST_EPOCH in row.protocol for row in rows):
        notes.append(
            "As published means that the figure is the best of all test epochs. It is shown to "
            "measure the inflation, not as a result."
        )
    for row in rows:
        gone = [task for task in tasks if task not in row.figures]
        if gone and len(tasks) > 1:
            what = "no result for some runs" if row.survivors else "no result"
            notes.append(f"{row.label} has {what} on {', '.join(gone)}: no mean over tasks.")
    return notes


def nothing_finished(results: Sequence[CellResult], unfinished: Unfinished) -> VituneError:
    """The error for a table without any accuracy, saying what there is instead."""
    found = " ".join([*_lost_notes(results), *_unfinished_notes(unfinished)])
    return VituneError(f"table: got no finished result, expected at least one. {found}".rstrip())


def _lost_notes(results: Sequence[CellResult]) -> list[str]:
    notes = []
    for status, what in (
        ("diverged", "diverged: their loss became non-finite"),
        ("failed", "failed; run the study again to retry them"),
    ):
        own = [result for result in results if result.status == status]
        if own:
            counts = Counter(f"{result.label} on {result.task}" for result in own)
            named = [f"{where} ({number})" for where, number in counts.items()]
            errors = list(dict.fromkeys(str(result.error) for result in own))[:MOST_ERRORS]
            notes.append(f"{_runs(len(own))} {what}. {_listed(named)}. {' '.join(errors)}")
    return notes


def _unfinished_notes(unfinished: Unfinished) -> list[str]:
    if not unfinished:
        return []
    seeds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for label, task, seed in unfinished:
        seeds[label, task].append(str(seed))
    named = [f"{label} on {task}, seed {' '.join(own)}" for (label, task), own in seeds.items()]
    verb = "is" if len(unfinished) == 1 else "are"
    return [
        f"{_runs(len(unfinished))} {verb} still to come; run the same command with the same "
        f"--out to continue. {_listed(named, '; ')}."
    ]


def _shared_image_notes(done: Iterable[CellResult]) -> list[str]:
    """Accuracies with and without the images shared with training, by task and method."""
    by_task: dict[str, dict[str, list[CellResult]]] = defaultdict(lambda: defaultdict(list))
    for result in done:
        if result.unshared is not None:
            by_task[result.task][result.label].append(result)
    notes = []
    for task, by_label in by_task.items():
        first = next(iter(by_label.values()))[0]
        assert first.scores is not None and first.unshared is not None
        shared = first.scores.num_images - first.unshared.num_images
        means = [_with_and_without(label, own) for label, own in by_label.items()]
        notes.append(
            f"{task}: {shared} of {first.scores.num_images} {first.scored_on} images are among the "
            f"training images too. Accuracy with and without them: {'; '.join(means)}."
        )
    return notes


def _with_and_without(label: str, results: Sequence[CellResult]) -> str:
    pairs = [(r.scores.top1, r.unshared.top1) for r in results if r.scores and r.unshared]
    whole, alone = (100 * sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    return f"{label} {whole:.1f}, {alone:.1f}"


def _took_steps(result: CellResult) -> bool:
    """Whether training computed in the format that was asked for: a solver is always in fp32."""
    method = METHODS.get(result.config.get("method", ""))
    return method is None or not method.solved


def _environment_notes(done: Sequence[CellResult]) -> list[str]:
    """Whether the runs of a table were made by different versions, devices or number formats."""
    notes = []
    old = [result for result in done if result.format < FORMAT]
    if old:
        notes.append(
            f"{_runs(len(old))} of an older vitune, which did not check every file that a result "
            "depends on."
        )
    precisions = Counter(result.precision or "unknown" for result in done if _took_steps(result))
    devices = Counter(result.device_kind or "unknown" for result in done)
    if len(devices) > 1:
        notes.append(
            f"The runs were made on different devices ({_counted(devices)}): seconds and memory do "
            "not compare."
        )
    if len(precisions) > 1:
        notes.append(
            f"The runs computed in different number formats ({_counted(precisions)}): a small "
            "difference may come from that. Set a precision for all, or use --rerun-changed."
        )
    if any(speed_of(result) != EXACT for result in done):
        notes.append(f"Speed: {speed_text(done)}.")
    names = sorted({name for result in done for name in result.versions})
    for name in names:
        found = Counter(result.versions.get(name, "unknown") for result in done)
        if len(found) > 1:
            notes.append(
                f"The runs were made with different versions of {name} ({_counted(found)}); "
                "--rerun-changed makes them uniform."
            )
    return notes


def speed_of(result: CellResult) -> str:
    """The preset of a run."""
    return result.speed or EXACT


def speed_text(results: Sequence[CellResult]) -> str:
    """The presets of all runs: "exact", or which methods had which."""
    labels: dict[str, list[str]] = {}
    for result in results:
        own = labels.setdefault(speed_of(result), [])
        if result.label not in own:
            own.append(result.label)
    if len(labels) == 1:
        return next(iter(labels))
    return "; ".join(f"{speed}: {_listed(own)}" for speed, own in labels.items())


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {_runs(number)}" for name, number in counts.most_common())


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


def _listed(names: Sequence[str], between: str = ", ") -> str:
    more = f"{between}and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return between.join(names[:MOST_NAMED]) + more
