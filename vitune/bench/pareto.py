"""Accuracy against time and memory: methods x speed presets x epochs, on one honest protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from vitune.bench.launching import suite_study
from vitune.bench.study.cells import CellResult
from vitune.bench.study.plan import Study, Variant
from vitune.bench.tables.front_page import WITHIN, Point
from vitune.errors import VituneError, nearest
from vitune.methods import get_method
from vitune.report import mean_and_std

EXACT = "exact"
SPEEDS = (EXACT, "fast", "fastest")


def pareto_study(
    suites: Sequence[str],
    methods: Sequence[str],
    out: str | Path,
    *,
    speeds: Sequence[str] = SPEEDS,
    epochs: Sequence[int] = (),
    **values: Any,
) -> Study:
    """The study behind the front: every method at every preset and length, at its own defaults.

    Validation images are never trained on: they show when a run is as good as the exact one. The
    test images are opened once per run, after its last epoch, and choose nothing.

    Args:
        suites: suites or single data sets; their tasks are combined.
        epochs: several lengths; empty takes the first suite's.
        values: as for `suite_study`.

    Raises:
        VituneError: an unknown preset, no "exact" preset, or an error of the study.
    """
    for speed in speeds:
        if speed not in SPEEDS:
            raise VituneError(
                f"--speeds: got {speed!r}, expected some of {', '.join(SPEEDS)}. "
                f"{nearest(speed, SPEEDS)}"
            )
    if EXACT not in speeds:
        raise VituneError("--speeds: got no exact, expected it as the reference.")
    if any(number < 1 for number in epochs):
        raise VituneError(f"--epochs: got {list(epochs)!r}, expected 1 or more each.")
    if not suites:
        raise VituneError("--suite: got none, expected a suite or a data set.")
    for name in methods:
        if get_method(name).solved:
            raise VituneError(
                f"--methods: got {name!r}, whose head is solved at once, expected methods that are "
                f"trained by steps.{_instead(name)}"
            )
    parts = [suite_study(s, methods, out, tune=False, retention=False, **values) for s in suites]
    study = parts[0]
    lengths = tuple(dict.fromkeys(epochs)) or (study.epochs,)
    variants = [
        variant.model_copy(
            update={
                "label": _label(variant.label, speed, number if len(lengths) > 1 else None),
                "settings": {**variant.settings, "epochs": number, **_preset(speed)},
            }
        )
        for variant, speed, number in product(study.variants, dict.fromkeys(speeds), lengths)
    ]
    tasks = [task for part in parts for task in part.tasks]
    changes = {"name": "pareto", "variants": variants, "tasks": tasks, "watch": True}
    return Study.make({**dict(study), **changes})


def _instead(name: str) -> str:
    stepped = get_method(name).stepped
    return f" {stepped!r} trains the same model so." if stepped else ""


def front_of(study: Study, results: Sequence[CellResult]) -> list[Point]:
    """The points of a finished study, with those on either front marked.

    A variant that lost a run has no point: its other runs alone are on easier tasks or seeds.

    Raises:
        VituneError: a method lost a run at the exact preset.
    """
    by_label = _whole_runs(study, results)
    references = {
        method: _reference(method, study.variants, by_label)
        for method in dict.fromkeys(variant.method for variant in study.variants)
    }
    points = [
        _point(variant, by_label[variant.label], references[variant.method])
        for variant in study.variants
        if by_label[variant.label]
    ]
    by_time = _front([(point.seconds, point.accuracy) for point in points])
    by_memory = _front([(point.peak_mib or 0.0, point.accuracy) for point in points])
    return [
        replace(point, on_time_front=i in by_time, on_memory_front=i in by_memory)
        for i, point in enumerate(points)
    ]


def front_note(study: Study, results: Sequence[CellResult]) -> str:
    """What the front is of: tasks, backbone, seeds, which images, and what it leaves out."""
    seeds = "1 seed" if len(study.seeds) == 1 else f"{len(study.seeds)} seeds"
    tasks = ", ".join(task.name for task in study.tasks)
    kinds = {result.scored_on for result in results if result.status == "done"}
    where = "on the test images, which each run opens once, at its end"
    if kinds == {"val"}:
        where = "on validation images, because the data has no test split"
    elif "val" in kinds:
        where += "; on validation images where the data has no test split"
    text = f"{tasks} with {study.backbone}, {seeds}, every method at its defaults. Accuracy is "
    return " ".join([f"{text}{where}.", *left_out(study, results)])


def left_out(study: Study, results: Sequence[CellResult]) -> list[str]:
    """A sentence on the variants that have no point; none if all have one."""
    lost = [label for label, own in _whole_runs(study, results).items() if not own]
    return [f"Left out, because runs have no accuracy: {', '.join(lost)}."] if lost else []


def _whole_runs(study: Study, results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """Every variant's runs, none of a variant that lacks one."""
    found: dict[str, list[CellResult]] = {variant.label: [] for variant in study.variants}
    for result in results:
        if result.status == "done" and result.scores is not None and result.curve:
            found[result.label].append(result)
    wanted = len(study.tasks) * len(study.seeds)
    return {label: own if len(own) == wanted else [] for label, own in found.items()}


def _reference(
    method: str, variants: Iterable[Variant], by_label: Mapping[str, Sequence[CellResult]]
) -> Sequence[CellResult]:
    """The runs of the exact preset at the most epochs."""
    exact = [v for v in variants if v.method == method and _speed(v) == EXACT]
    longest = max(exact, key=lambda v: int(v.settings["epochs"]))
    found = by_label[longest.label]
    if not found:
        raise VituneError(
            f"pareto: got runs of {longest.label!r} without an accuracy or a course, expected all "
            "as the reference. Run the command again to retry the failed runs."
        )
    return found


def _point(variant: Variant, own: Sequence[CellResult], exact: Sequence[CellResult]) -> Point:
    ends = {task: fmean(_ends(exact, task)) for task in {r.task for r in exact}}
    reached = [
        _seconds_until(result, ends[result.task] - WITHIN) for result in own if result.task in ends
    ]
    there = [seconds for seconds in reached if seconds is not None]
    accuracy, base = _accuracy(own), _accuracy(exact)
    seconds, cpu = _cost(own, 0), _cost(own, 1)
    peaks = [result.peak_mib for result in own if result.peak_mib is not None]
    return Point(
        label=variant.label,
        method=variant.method,
        speed=_speed(variant),
        epochs=int(variant.settings["epochs"]),
        accuracy=accuracy,
        spread=_spread(own),
        seconds=seconds,
        cpu_seconds=cpu if own[0].cpu_seconds is not None else None,
        peak_mib=max(peaks, default=None),
        gain=accuracy - base,
        time_ratio=seconds / max(_cost(exact, 0), 1e-9),
        cpu_ratio=cpu / max(_cost(exact, 1), 1e-9) if own[0].cpu_seconds is not None else None,
        seconds_to_accuracy=fmean(there) if there else None,
        num_there=len(there),
        num_runs=len(own),
    )


def _seconds_until(result: CellResult, wanted: float) -> float | None:
    """Seconds of training after which validation never falls below `wanted` again."""
    found = None
    for seconds, _, accuracy in reversed(result.curve):
        if accuracy is None or accuracy < wanted:
            break
        found = seconds
    return found


def _ends(results: Sequence[CellResult], task: str) -> list[float]:
    """Final validation accuracies of a task's runs; test accuracy if there is no validation."""
    found = []
    for result in results:
        if result.task == task:
            watched = result.curve[-1][2]
            found.append(_top1(result) if watched is None else watched)
    return found


def _top1(result: CellResult) -> float:
    assert result.scores is not None
    return result.scores.top1


def _accuracy(results: Sequence[CellResult]) -> float:
    tasks = dict.fromkeys(result.task for result in results)
    return fmean(fmean(_top1(r) for r in results if r.task == task) for task in tasks)


def _spread(results: Sequence[CellResult]) -> float | None:
    seeds = dict.fromkeys(result.seed for result in results)
    by_seed = [fmean(_top1(r) for r in results if r.seed == seed) for seed in seeds]
    return mean_and_std(by_seed)[1]


def _cost(results: Sequence[CellResult], column: Literal[0, 1]) -> float:
    """Mean seconds of a run's training steps: wall-clock or processor time."""
    return fmean(result.curve[-1][column] for result in results)


def _front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of the points (cost, accuracy) that no other one dominates."""
    return {
        i
        for i, (cost, accuracy) in enumerate(points)
        if not any(
            other <= cost and better >= accuracy and (other, better) != (cost, accuracy)
            for other, better in points
        )
    }


def _speed(variant: Variant) -> str:
    return str(variant.settings.get("speed", EXACT))


def _preset(speed: str) -> dict[str, str]:
    return {} if speed == EXACT else {"speed": speed}


def _label(name: str, speed: str, epochs: int | None) -> str:
    return f"{name} {speed}" if epochs is None else f"{name} {speed} {epochs} ep"
