"""The geometry of accuracy-against-cost plots; templates/charts.html turns it into SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise
from math import hypot

from vitune.report.formatting import percent, shorten
from vitune.report.scales import Scale, Tick, log_scale, nice_scale

WIDTH, HEIGHT = 460, 330
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 48
LETTER_WIDTH = 7.0
LINE_STEP = 6.0
OFFSETS = (
    (9, 4, "start"), (-9, 4, "end"), (0, -11, "middle"), (0, 20, "middle"),
    (7, -7, "start"), (7, 16, "start"), (-7, -7, "end"), (-7, 16, "end"),
    (0, -25, "middle"), (0, 34, "middle"),
)  # fmt: skip
BESIDE = OFFSETS[:2]
"""Where a name can only belong to its own dot, however many there are."""


@dataclass(frozen=True)
class Box:
    """A rectangle in picture units, y downward."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


@dataclass(frozen=True)
class Label:
    """A name and its position; `anchor` as in SVG's text-anchor."""

    text: str
    x: float
    y: float
    anchor: str
    box: Box


@dataclass(frozen=True)
class Dot:
    """One method in a scatter plot: its position, the ends of its spread, and its name."""

    x: float
    y: float
    y_low: float
    y_high: float
    title: str
    label: Label
    highlighted: bool


@dataclass(frozen=True)
class ScatterChart:
    """Accuracy against a cost on a logarithmic axis; a cost of 0 is set apart at the left."""

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


def scatter_chart(
    title: str, x_title: str, measured: Sequence[Measured], *, crowded: bool = False
) -> ScatterChart | None:
    """A scatter plot of accuracy against cost; None where nothing was measured.

    Args:
        crowded: highlighted points lie on a line and are all named; other names are left out
            where there is no room beside their dots.
    """
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
    places = [
        (x(entry.cost) if entry.cost > 0 or zero_x is None else zero_x, y(entry.accuracy))
        for entry in measured
    ]
    names = [shorten(entry.name, 24) for entry in measured]
    needed = [entry.highlighted for entry in measured] if crowded else None
    labels = place_labels(names, places, needed)
    dots = [
        _dot(entry, place, label, y)
        for entry, place, label in zip(measured, places, labels, strict=True)
    ]
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


def place_labels(
    names: Sequence[str],
    places: Sequence[tuple[float, float]],
    needed: Sequence[bool] | None = None,
) -> list[Label]:
    """Place a name beside each dot so that it covers no dot and no earlier name.

    The positions of OFFSETS are tried in order; if all are taken, the one that covers least is
    used.

    Args:
        needed: names that are placed first, clear of the line through their dots. Any other one
            becomes empty unless there is room on the left or right of its dot. None needs all and
            draws no line.
    """
    dots = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    frame = Box(LEFT, 0, WIDTH, HEIGHT - BOTTOM + 8)
    line = _along(compress(places, needed or ()))
    is_needed = needed or [True] * len(names)
    labels: dict[int, Label] = {}
    for index in sorted(range(len(names)), key=lambda index: not is_needed[index]):
        taken = [*dots, *line, *(label.box for label in labels.values())]
        offsets = OFFSETS if is_needed[index] else BESIDE
        tried = [_label(names[index], places[index], *offset) for offset in offsets]
        costs = [_covered(label.box, taken, frame) for label in tried]
        labels[index] = tried[costs.index(min(costs))]
        if not is_needed[index] and min(costs) > 0:
            labels[index] = _label("", places[index], *BESIDE[0])
    return [labels[index] for index in range(len(names))]


def _along(places: Iterable[tuple[float, float]]) -> list[Box]:
    """Small boxes along the line through the places, from left to right."""
    corners = sorted(places)
    boxes = []
    for (x, y), (to_x, to_y) in pairwise(corners):
        number = max(1, round(hypot(to_x - x, to_y - y) / LINE_STEP))
        for step in range(1, number):
            at_x, at_y = x + (to_x - x) * step / number, y + (to_y - y) * step / number
            boxes.append(Box(at_x - 2, at_y - 2, at_x + 2, at_y + 2))
    return boxes


def _label(name: str, place: tuple[float, float], right: float, down: float, anchor: str) -> Label:
    width = LETTER_WIDTH * len(name)
    at_x, at_y = place[0] + right, place[1] + down
    start = at_x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return Label(name, at_x, at_y, anchor, Box(start, at_y - 10, start + width, at_y + 3))


def _covered(box: Box, taken: Sequence[Box], frame: Box) -> float:
    """The area of `taken` under `box`, and what sticks out of the frame."""
    area = (box.right - box.left) * (box.bottom - box.top)
    return sum(box.overlap(other) for other in taken) + 2 * (area - box.overlap(frame))


def _dot(entry: Measured, place: tuple[float, float], label: Label, y: Scale) -> Dot:
    spread = entry.spread or 0.0
    text = percent(entry.accuracy, 2)
    text += f" ± {percent(entry.spread, 2)}" if entry.spread is not None else " (one seed)"
    return Dot(
        x=place[0],
        y=place[1],
        y_low=y(max(0.0, entry.accuracy - spread)),
        y_high=y(min(1.0, entry.accuracy + spread)),
        title=f"{entry.name}: {text}, {entry.cost_text}",
        label=label,
        highlighted=entry.highlighted,
    )
