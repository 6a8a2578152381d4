"""The geometry of accuracy-against-cost plots; templates/charts.html turns it into SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitune.report.formatting import percent, shorten
from vitune.report.scales import Scale, Tick, log_scale, nice_scale

WIDTH, HEIGHT = 520, 340
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 46
LABEL_HEIGHT, LETTER_WIDTH = 13.0, 6.6


@dataclass(frozen=True)
class Dot:
    """One method in a scatter plot: its place, the ends of its spread, and where its name goes."""

    x: float
    y: float
    y_low: float
    y_high: float
    name: str
    title: str
    label_x: float
    label_y: float
    label_anchor: str
    highlighted: bool


@dataclass(frozen=True)
class ScatterChart:
    """Accuracy against a cost on a logarithmic axis; a cost of 0 stands apart at the left."""

    title: str
    x_title: str
    description: str
    dots: tuple[Dot, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    zero_x: float | None


@dataclass(frozen=True)
class Measured:
    """What a scatter plot shows of one method; `spread` is None for a single seed."""

    name: str
    cost: float
    accuracy: float
    spread: float | None
    cost_text: str
    highlighted: bool = False


def scatter_chart(title: str, x_title: str, measured: Sequence[Measured]) -> ScatterChart | None:
    """A scatter plot of accuracy against cost; None where nothing was measured."""
    if not measured:
        return None
    has_zero = any(entry.cost <= 0 for entry in measured)
    left = LEFT + (44 if has_zero else 0)
    costs = [entry.cost for entry in measured if entry.cost > 0] or [1.0]
    x, x_ticks = log_scale(costs, left, WIDTH - RIGHT)
    ends = [
        max(0.0, min(1.0, entry.accuracy + sign * (entry.spread or 0.0)))
        for entry in measured
        for sign in (-1, 1)
    ]
    y, ticks = nice_scale(ends, HEIGHT - BOTTOM, TOP, top=1.0)
    zero_x = LEFT + 18.0 if has_zero else None
    dots: list[Dot] = []
    for entry in sorted(measured, key=lambda entry: -entry.accuracy):
        at = x(entry.cost) if entry.cost > 0 or zero_x is None else zero_x
        dots.append(_dot(entry, at, y, dots))
    named = "; ".join(f"{entry.name} {percent(entry.accuracy)}" for entry in measured)
    return ScatterChart(
        title=title,
        x_title=x_title,
        description=f"{title}: {named}.",
        dots=tuple(dots),
        x_ticks=tuple([Tick(zero_x, "0")] if zero_x is not None else []) + tuple(x_ticks),
        y_ticks=tuple(Tick(y(tick), f"{100 * tick:g} %") for tick in ticks),
        zero_x=zero_x,
    )


def _dot(entry: Measured, at: float, y: Scale, placed: Sequence[Dot]) -> Dot:
    """The dot with its name beside it, moved down until it covers no name that stands already."""
    spread = entry.spread or 0.0
    toward_left = at > WIDTH * 0.72
    label_x = at - 9 if toward_left else at + 9
    label_y = y(entry.accuracy) + 4
    name = shorten(entry.name, 24)
    width = LETTER_WIDTH * len(name)
    low_x, high_x = (label_x - width, label_x) if toward_left else (label_x, label_x + width)
    taken = sorted(dot.label_y for dot in placed if _overlap(dot, low_x, high_x))
    for other in taken:
        if abs(other - label_y) < LABEL_HEIGHT:
            label_y = other + LABEL_HEIGHT
    text = percent(entry.accuracy, 2)
    text += f" ± {percent(entry.spread, 2)}" if entry.spread is not None else " (one seed)"
    return Dot(
        x=at,
        y=y(entry.accuracy),
        y_low=y(max(0.0, entry.accuracy - spread)),
        y_high=y(min(1.0, entry.accuracy + spread)),
        name=name,
        title=f"{entry.name}: {text}, {entry.cost_text}",
        label_x=label_x,
        label_y=label_y,
        label_anchor="end" if toward_left else "start",
        highlighted=entry.highlighted,
    )


def _overlap(dot: Dot, low_x: float, high_x: float) -> bool:
    width = LETTER_WIDTH * len(dot.name)
    start = dot.label_x - width if dot.label_anchor == "end" else dot.label_x
    return start < high_x and low_x < start + width
