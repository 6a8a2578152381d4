"""The geometry of accuracy against images per class; templates/shots_chart.html draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitune.bench.tables.study_table import Figure, Table, TableRow
from vitune.bench.tables.table_formats import label_of
from vitune.report.formatting import percent, shorten
from vitune.report.intervals import mean_and_std
from vitune.report.scales import Scale, Tick, nice_scale

WIDTH, HEIGHT = 460, 330
LEFT, RIGHT, TOP, BOTTOM = 52, 112, 14, 48
MARGIN = 1.25
LETTERS = 15
LINE_GAP = 15.0


@dataclass(frozen=True)
class Spot:
    """One method at one number of shots, with the ends of its spread over seeds."""

    x: float
    y: float
    y_low: float
    y_high: float
    title: str


@dataclass(frozen=True)
class Course:
    """One method over the numbers of shots; its name is at the right."""

    name: str
    path: str
    spots: tuple[Spot, ...]
    label_y: float
    best: bool


@dataclass(frozen=True)
class ShotsChart:
    """A picture of WIDTH x HEIGHT units, shots on a logarithmic axis.

    Args:
        num_sets: number of data sets that each point averages.
    """

    description: str
    num_sets: int
    courses: tuple[Course, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def shots_chart(table: Table, shots: Mapping[str, int]) -> ShotsChart | None:
    """Mean accuracy over data sets by images per class; None for fewer than two numbers of shots.

    A method has a point if it has a figure for every data set at that number.

    Args:
        shots: images per class, by the task's name.
    """
    tasks_at: dict[int, list[str]] = {}
    for task in table.tasks:
        if task in shots:
            tasks_at.setdefault(shots[task], []).append(task)
    numbers = sorted(tasks_at)
    several = len({row.backbone for row in table.rows}) > 1
    series = {
        label_of(row, several): {n: _mean(row, tasks_at[n]) for n in numbers} for row in table.rows
    }
    known = {name: {n: v for n, v in own.items() if v} for name, own in series.items()}
    known = {name: own for name, own in known.items() if own}
    if len(numbers) < 2 or not known:
        return None
    x = Scale(numbers[0] / MARGIN, numbers[-1] * MARGIN, LEFT, WIDTH - RIGHT, log=True)
    ends = [
        min(1.0, max(0.0, mean + sign * spread))
        for own in known.values()
        for mean, spread in own.values()
        for sign in (-1, 1)
    ]
    y, ticks = nice_scale(ends, HEIGHT - BOTTOM, TOP, top=1.0)
    last = {name: own[max(own)][0] for name, own in known.items()}
    top = max(last.values())
    heights = _apart({name: y(mean) for name, mean in last.items()})
    return ShotsChart(
        description=_description(known),
        num_sets=max(map(len, tasks_at.values())),
        courses=tuple(
            _course(name, own, x, y, heights[name], last[name] == top and len(known) > 1)
            for name, own in known.items()
        ),
        x_ticks=tuple(Tick(x(number), str(number)) for number in numbers),
        y_ticks=tuple(Tick(y(tick), f"{100 * tick:g} %") for tick in ticks),
    )


def _mean(row: TableRow, tasks: Sequence[str]) -> tuple[float, float] | None:
    """Mean over tasks and its standard deviation over seeds, 0 for a single seed."""
    figures: list[Figure] = [row.figures[task] for task in tasks if task in row.figures]
    if len(figures) < len(tasks) or len({figure.seeds for figure in figures}) != 1:
        return None
    by_seed = zip(*(figure.values for figure in figures), strict=True)
    mean, spread = mean_and_std([sum(values) / len(values) for values in by_seed])
    return mean, spread or 0.0


def _course(
    name: str,
    values: Mapping[int, tuple[float, float]],
    x: Scale,
    y: Scale,
    label_y: float,
    best: bool,
) -> Course:
    spots = tuple(
        Spot(
            x(number),
            y(mean),
            y(max(0.0, mean - spread)),
            y(min(1.0, mean + spread)),
            f"{name}, {_images(number)}: {percent(mean, 2)} ± {percent(spread, 2)}",
        )
        for number, (mean, spread) in sorted(values.items())
    )
    path = "".join(f"{'L' if n else 'M'}{spot.x:g} {spot.y:g}" for n, spot in enumerate(spots))
    return Course(shorten(name, LETTERS), path, spots, label_y, best)


def _apart(places: Mapping[str, float]) -> dict[str, float]:
    """Heights of the names, each near its own line and none overlapping."""
    found: dict[str, float] = {}
    lowest = TOP - LINE_GAP
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        lowest = max(place, lowest + LINE_GAP)
        found[name] = lowest
    over = lowest - (HEIGHT - BOTTOM)
    return {name: place - max(0.0, over) for name, place in found.items()}


def _images(number: int) -> str:
    return "1 image per class" if number == 1 else f"{number} images per class"


def _description(known: Mapping[str, Mapping[int, tuple[float, float]]]) -> str:
    parts = [
        f"{name} {', '.join(f'{number}: {percent(own[number][0])}' for number in sorted(own))}"
        for name, own in known.items()
    ]
    return f"Accuracy against training images per class: {'; '.join(parts)}."
