"""Early exits in a report: accuracy against measured time, and where images left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitune.report.formatting import percent
from vitune.report.intervals import wilson_interval
from vitune.report.scales import Tick
from vitune.report.scatter import Measured, ScatterChart, scatter_chart
from vitune.result_files import Record, as_record

LEFT, RIGHT, TOP, BOTTOM = 52.0, 446.0, 14.0, 250.0


@dataclass(frozen=True)
class ExitRow:
    """One exit: how many images left there, and how many of these were right."""

    name: str
    share: float
    accuracy: float
    gflops: float


@dataclass(frozen=True)
class System:
    """A system a user could run: the network with exits, in full or cut off, or another run."""

    name: str
    kind: str
    accuracy: float
    gflops: float
    ms_per_image: float
    num_timed: int


@dataclass(frozen=True)
class ExitScores:
    """The "exits" of an evaluation file; shares in [0, 1]."""

    rows: tuple[ExitRow, ...]
    systems: tuple[System, ...]
    mean_gflops: float | None
    disagreement: float | None
    error_gap: float | None
    is_calibrated: bool
    on_calibration_images: bool
    certificate: str
    by_confidence: tuple[tuple[float, float, tuple[float, ...]], ...]
    first: tuple[Any, ...]
    last: tuple[Any, ...]


@dataclass(frozen=True)
class Segment:
    """Part of a bar: images of similar confidence that left at one exit."""

    y: float
    height: float
    exit: int
    title: str


@dataclass(frozen=True)
class ShareBars:
    """The exit at which images left, by the first exit's confidence; below, how many images."""

    bars: tuple[tuple[float, float, float, tuple[Segment, ...]], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    names: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class ExitsView:
    """An evaluation's exits with their charts."""

    scores: ExitScores
    scatter: ScatterChart | None
    bars: ShareBars | None


def read_exits(record: Record, example: Callable[[Record], Any]) -> ExitScores | None:
    """The exits of an evaluation file; None where the run has none.

    Args:
        example: reads one example image.

    Raises:
        VituneError: a value that is not what it should be.
    """
    values = record.mapping("exits")
    if not values:
        return None
    found = as_record(values, f"{record.where}: exits")
    examples = as_record(found.mapping("examples"), f"{found.where}: examples")
    return ExitScores(
        rows=tuple(_row(entry) for entry in found.records("exits")),
        systems=tuple(_system(entry) for entry in found.records("systems")),
        mean_gflops=found.number("mean_gflops"),
        disagreement=found.share("disagreement"),
        error_gap=found.share("error_gap"),
        is_calibrated=bool(found.flag("is_calibrated")),
        on_calibration_images=bool(found.flag("on_calibration_images")),
        certificate=_certificate(found),
        by_confidence=tuple(_bin(entry) for entry in found.records("by_confidence")),
        first=tuple(example(entry) for entry in examples.records("first")),
        last=tuple(example(entry) for entry in examples.records("last")),
    )


def exits_view(scores: ExitScores | None, num_images: int) -> ExitsView | None:
    """The charts of an evaluation's exits; None if it has none."""
    if scores is None:
        return None
    measured = [
        Measured(
            name=system.name,
            cost=system.ms_per_image,
            accuracy=system.accuracy,
            spread=_half_interval(system.accuracy, num_images),
            cost_text=f"{system.ms_per_image:.3f} ms per image, {system.gflops:.3f} GFLOPs",
            highlighted=system.kind == "exits",
        )
        for system in scores.systems
    ]
    scatter = scatter_chart("Accuracy against time", "milliseconds per image", measured)
    return ExitsView(scores, scatter, _bars(scores))


def _bars(scores: ExitScores) -> ShareBars | None:
    if not scores.by_confidence:
        return None
    names = tuple(row.name for row in scores.rows)
    step = (RIGHT - LEFT) / 10
    largest = max(share for _, share, _ in scores.by_confidence)
    bars = []
    for start, share, exits in scores.by_confidence:
        x, y, segments = LEFT + start * 10 * step, BOTTOM, []
        for index, part in enumerate(exits):
            height = part * (BOTTOM - TOP)
            y -= height
            title = (
                f"confidence {start:.1f} to {start + 0.1:.1f}: {percent(part)} left at "
                f"{_exit_name(names[index])}; {percent(share)} of all images"
            )
            segments.append(Segment(round(y, 2), round(height, 2), index, title))
        bars.append((round(x + 2, 2), round(step - 4, 2), round(34 * share / largest, 2),
                     tuple(segments)))  # fmt: skip
    shares = ", ".join(f"{percent(row.share)} at {_exit_name(row.name)}" for row in scores.rows)
    return ShareBars(
        bars=tuple(bars),
        x_ticks=tuple(Tick(LEFT + at * step, f"{at / 10:g}") for at in range(0, 11, 2)),
        y_ticks=tuple(Tick(BOTTOM - at / 4 * (BOTTOM - TOP), f"{25 * at} %") for at in range(5)),
        names=tuple(_exit_name(name) for name in names),
        description=f"Where images left, by the first exit's confidence: {shares}.",
    )


def _half_interval(accuracy: float, num_images: int) -> float:
    low, high = wilson_interval(accuracy, num_images)
    return (high - low) / 2


def _exit_name(name: str) -> str:
    return "the last exit" if name == "last" else f"exit {name}"


def _row(record: Record) -> ExitRow:
    return ExitRow(
        name=str(record.needed("name")),
        share=record.share("share") or 0.0,
        accuracy=record.share("accuracy_of_leaving") or 0.0,
        gflops=record.number("gflops") or 0.0,
    )


def _system(record: Record) -> System:
    return System(
        name=str(record.needed("name")),
        kind=str(record.needed("kind")),
        accuracy=record.share("accuracy") or 0.0,
        gflops=record.number("gflops") or 0.0,
        ms_per_image=record.number("ms_per_image") or 0.0,
        num_timed=record.whole("num_timed") or 0,
    )


def _bin(record: Record) -> tuple[float, float, tuple[float, ...]]:
    exits = tuple(float(value) for value in record.listing("exits"))
    return record.share("from") or 0.0, record.share("share") or 0.0, exits


def _certificate(record: Record) -> str:
    """What is certified, in a sentence."""
    values = record.mapping("certificate")
    if not values:
        budget = record.number("budget")
        if budget is not None:
            return f"Thresholds chosen for a mean cost of {budget:g}: their risk is not certified."
        return "The exits are not calibrated: no image leaves early."
    proof = as_record(values, f"{record.where}: certificate")
    meaning = {
        "disagreement": "leave early with a class other than the last exit's",
        "error-gap": "leave early with a wrong class although the last exit is right",
    }.get(str(proof.needed("definition")), "leave early with a wrong answer")
    return (
        f"Certified: at most {percent(proof.share('risk') or 0.0)} of images like the "
        f"calibration images {meaning}, with probability "
        f"{percent(1 - (proof.share('delta') or 0.0))} "
        f"({proof.whole('num_images') or 0:,} images)."
    )
