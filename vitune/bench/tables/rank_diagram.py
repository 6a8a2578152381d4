"""The geometry of a critical-difference diagram; templates/rank_diagram.html turns it into SVG.

A line per method, best first, with a dot at its mean rank; to the right a bar beside every group of
methods that cannot be told apart. The diagram reads downwards, so it also fits the width of a
phone.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitune.bench.tables.ranking import Ranking
from vitune.bench.tables.sureness import ranking_text
from vitune.report.formatting import shorten
from vitune.report.scales import Scale, Tick

WIDTH = 380
LEFT, TOP = 132, 46
LINE, LANE = 25, 10
LETTERS = 18
MOST_TICKS = 8


@dataclass(frozen=True)
class Place:
    """A method's line: its name, shortened and in full, its rank and the dot's position."""

    name: str
    full_name: str
    rank: float
    x: float
    y: float


@dataclass(frozen=True)
class Bar:
    """A group of methods that cannot be told apart, from its first line to its last."""

    x: float
    y_start: float
    y_end: float
    title: str


@dataclass(frozen=True)
class RankDiagram:
    """A picture of WIDTH x `height` units, y downward.

    Args:
        ruler: from where to where the critical difference reaches along the axis.
    """

    width: int
    height: int
    left: float
    right: float
    places: tuple[Place, ...]
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    ruler: tuple[float, float]
    critical_difference: float
    description: str


def rank_diagram(found: Ranking) -> RankDiagram:
    """The diagram of a ranking."""
    num_methods = len(found.ranks)
    lanes = _lanes(found)
    right = WIDTH - 16 - LANE * (max(lanes, default=-1) + 1)
    x = Scale(1, num_methods, LEFT + 8, right - 8)
    y_of = {label: TOP + LINE * (line + 0.5) for line, label in enumerate(found.ranks)}
    places = [
        Place(shorten(label, LETTERS), label, rank, x(rank), y_of[label])
        for label, rank in found.ranks.items()
    ]
    bars = [
        Bar(right + LANE * (lane + 1), y_of[group[0]], y_of[group[-1]],
            f"cannot be told apart: {', '.join(group)}")
        for lane, group in zip(lanes, found.groups, strict=True)
    ]  # fmt: skip
    step = 1 + (num_methods - 1) // MOST_TICKS
    return RankDiagram(
        width=WIDTH,
        height=TOP + LINE * num_methods + 8,
        left=LEFT,
        right=right,
        places=tuple(places),
        bars=tuple(bars),
        ticks=tuple(Tick(x(rank), str(rank)) for rank in range(1, num_methods + 1, step)),
        ruler=(x(1), x(1 + found.critical_difference)),
        critical_difference=found.critical_difference,
        description=ranking_text(found),
    )


def _lanes(found: Ranking) -> list[int]:
    """A column for every group's bar: the first one that is free on its lines."""
    line_of = {label: line for line, label in enumerate(found.ranks)}
    ends: list[int] = []
    lanes = []
    for group in found.groups:
        first, last = line_of[group[0]], line_of[group[-1]]
        free = [lane for lane, end in enumerate(ends) if end < first]
        lane = free[0] if free else len(ends)
        ends[lane : lane + 1] = [last]
        lanes.append(lane)
    return lanes
