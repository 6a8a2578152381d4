"""One page about accuracy against cost, with the front drawn; and its table as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitune.report import Measured, ScatterChart, duration, scatter_chart, write_page

TEMPLATES = Path(__file__).parent / "templates"
HEADS = (
    "method", "speed", "epochs", "accuracy", "gain", "seconds", "ratio", "CPU seconds", "ratio",
    "peak MiB", "until equal", "front",
)  # fmt: skip
SHORT_HEADS = ("method", "speed", "ep", "accuracy", "gain", "s", "x", "cpu x", "MiB", "until",
               "front")  # fmt: skip
SHORT = (*range(7), 8, 9, 10, 11)
"""The columns under SHORT_HEADS: all but the processor seconds, to fit a terminal."""
TEXTS = ("method", "speed", "front")
WITHIN = 0.005
"""How far below the exact run's final accuracy a run still counts as equal: half a point."""


@dataclass(frozen=True)
class Point:
    """One method at one preset and length, over all tasks and seeds.

    Args:
        accuracy: mean over tasks of the mean over seeds, in [0, 1]; `spread` is the standard
            deviation over seeds of the mean over tasks, None for one seed.
        seconds, cpu_seconds: of the training steps of a run, validation left out; means.
        peak_mib: the largest of any run.
        gain: accuracy minus that of the exact preset at the most epochs.
        time_ratio, cpu_ratio: relative to the same.
        seconds_to_accuracy: until validation stays within WITHIN of the exact run's end, mean over
            the runs that get there.
        num_there, num_runs: how many get there, of how many.
        on_time_front, on_memory_front: whether no other point is as accurate for less.
    """

    label: str
    method: str
    speed: str
    epochs: int
    accuracy: float
    spread: float | None
    seconds: float
    cpu_seconds: float | None
    peak_mib: float | None
    gain: float
    time_ratio: float
    cpu_ratio: float | None
    seconds_to_accuracy: float | None
    num_there: int
    num_runs: int
    on_time_front: bool = False
    on_memory_front: bool = False


def front_lines(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """A line of text per point, under HEADS."""
    return [_line(point) for point in points]


def short_lines(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """The same under SHORT_HEADS."""
    return [tuple(line[column] for column in SHORT) for line in front_lines(points)]


def _line(point: Point) -> tuple[str, ...]:
    spread = "" if point.spread is None else f" ± {100 * point.spread:.1f}"
    until = "never" if point.seconds_to_accuracy is None else f"{point.seconds_to_accuracy:.1f}"
    if 0 < point.num_there < point.num_runs:
        until += f" ({point.num_there} of {point.num_runs})"
    front = {(True, True): "both", (True, False): "time", (False, True): "memory"}
    return (
        point.method,
        point.speed,
        str(point.epochs),
        f"{100 * point.accuracy:.1f}{spread}",
        f"{100 * point.gain:+.1f}",
        f"{point.seconds:.1f}",
        f"{point.time_ratio:.2f}",
        _number(point.cpu_seconds, 1),
        _number(point.cpu_ratio, 2),
        _number(point.peak_mib, 0),
        until,
        front.get((point.on_time_front, point.on_memory_front), ""),
    )


def write_front_page(points: Sequence[Point], out: str | Path, *, note: str) -> Path:
    """Write one self-contained HTML file with table and charts and return its path.

    Raises:
        VituneError: `out` is a folder.
    """
    kinds: list[tuple[str, str, Callable[[Point], float], Callable[[Point], bool]]] = [
        (
            "Accuracy against time",
            "seconds of training steps per run (logarithmic)",
            lambda point: point.seconds,
            lambda point: point.on_time_front,
        ),
        (
            "Accuracy against memory",
            "peak MiB of the process (logarithmic)",
            lambda point: point.peak_mib or 0.0,
            lambda point: point.on_memory_front,
        ),
    ]
    drawn = [_chart(points, *kind) for kind in kinds]
    context = {
        "note": note,
        "heads": [(head, "text" if head in TEXTS else "number") for head in HEADS],
        "lines": front_lines(points),
        "drawn": drawn,
        "has_spread": any(point.spread is not None for point in points),
    }
    return write_page(Path(out), "front.html", context, folder=TEMPLATES)


def _chart(
    points: Sequence[Point],
    title: str,
    x_title: str,
    cost: Callable[[Point], float],
    is_on: Callable[[Point], bool],
) -> tuple[ScatterChart | None, str]:
    """The scatter plot, and the front as an SVG path: along it, more accuracy costs more."""
    tell = duration if "time" in title else "{:,.0f} MiB".format
    measured = [
        Measured(p.label, cost(p), p.accuracy, p.spread, tell(cost(p)), is_on(p)) for p in points
    ]
    chart = scatter_chart(title, x_title, measured, crowded=True)
    dots = sorted((d.x, d.y) for d in chart.dots if d.highlighted) if chart else []
    steps = [f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(dots)]
    return chart, " ".join(steps)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
