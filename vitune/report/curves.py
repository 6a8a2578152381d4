"""The geometry of curves over epochs; templates/charts.html turns it into SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitune.report.formatting import number, percent
from vitune.report.results import Epoch
from vitune.report.scales import Scale, Tick, nice_scale, whole_ticks

WIDTH, HEIGHT = 380, 248
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 42


@dataclass(frozen=True)
class Point:
    """A marked point with its text."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Line:
    """One curve: an SVG path, its points, and which of the series' styles it has."""

    name: str
    style: str
    path: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class CurveChart:
    """Curves over epochs."""

    title: str
    description: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marked_x: float | None


def curve_charts(epochs: Sequence[Epoch], reported: int | None) -> list[CurveChart]:
    """Loss, validation accuracy and learning rate over epochs; none for fewer than two epochs.

    Args:
        epochs: in order.
        reported: the epoch whose weights the run keeps, marked where it is among `epochs`.
    """
    if len(epochs) < 2:
        return []
    marked = reported if any(entry.epoch == reported for entry in epochs) else None
    wanted: list[tuple[str, list[tuple[str, str, list[float | None]]], Callable[[float], str]]] = [
        (
            "Loss",
            [
                ("training", "quiet", [entry.train_loss for entry in epochs]),
                ("validation", "main", [entry.val_loss for entry in epochs]),
            ],
            number,
        ),
        (
            "Validation accuracy",
            [("validation", "main", [entry.val_accuracy for entry in epochs])],
            lambda share: percent(share, 2),
        ),
        ("Learning rate", [("training", "quiet", [entry.lr for entry in epochs])], number),
    ]
    numbers = [entry.epoch for entry in epochs]
    charts = [_curve_chart(title, numbers, lines, show, marked) for title, lines, show in wanted]
    return [chart for chart in charts if chart is not None]


def _curve_chart(
    title: str,
    epochs: list[int],
    lines: list[tuple[str, str, list[float | None]]],
    show: Callable[[float], str],
    marked: int | None,
) -> CurveChart | None:
    shown = [line for line in lines if any(value is not None for value in line[2])]
    values = [value for _, _, series in shown for value in series if value is not None]
    if not values:
        return None
    x = Scale(epochs[0], epochs[-1], LEFT, WIDTH - RIGHT)
    accuracy = title == "Validation accuracy"
    y, ticks = nice_scale(
        values, HEIGHT - BOTTOM, TOP, zero=not accuracy, top=1.0 if accuracy else float("inf")
    )
    last = {name: next(v for v in reversed(series) if v is not None) for name, _, series in shown}
    ends = ", ".join(f"{name} ends at {show(value)}" for name, value in last.items())
    return CurveChart(
        title=title,
        description=f"{title} over epochs {epochs[0]} to {epochs[-1]}: {ends}.",
        lines=tuple(
            _line(name, style, list(zip(epochs, series, strict=True)), x, y, show)
            for name, style, series in shown
        ),
        x_ticks=tuple(Tick(x(tick), str(tick)) for tick in whole_ticks(epochs[0], epochs[-1], 6)),
        y_ticks=tuple(
            Tick(y(tick), f"{100 * tick:g} %" if accuracy else number(tick)) for tick in ticks
        ),
        marked_x=None if marked is None else x(marked),
    )


def _line(
    name: str,
    style: str,
    series: list[tuple[int, float | None]],
    x: Scale,
    y: Scale,
    show: Callable[[float], str],
) -> Line:
    """A curve with gaps where values are absent."""
    points, path, pen_up = [], [], True
    for epoch, value in series:
        if value is None:
            pen_up = True
            continue
        point = Point(x(epoch), y(value), f"epoch {epoch}, {name}: {show(value)}")
        path.append(f"{'M' if pen_up else 'L'}{point.x:g} {point.y:g}")
        points.append(point)
        pen_up = False
    return Line(name, style, "".join(path), tuple(points))
