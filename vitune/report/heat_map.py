"""The picture of a confusion matrix: squares whose strength is a share of the true class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width

from vitune.report.evaluations import ConfusionCounts, Evaluation
from vitune.report.formatting import count, percent, shorten

MOST_LABELLED = 40
MOST_NUMBERED = 20
MOST_SQUARES = 150
LEVELS = 10
LABEL_LETTERS = 18
LETTER_WIDTH, WIDE_LETTER_WIDTH = 6.8, 12.0


@dataclass(frozen=True)
class Cell:
    """A filled square; `level` 1 to 10 is its strength, `title` empty where there are too many."""

    x: float
    y: float
    level: int
    correct: bool
    count: int
    title: str


@dataclass(frozen=True)
class ClassLabel:
    """A class name beside its line of squares and above the squares of its predictions."""

    at: float
    text: str
    full: str


@dataclass(frozen=True)
class Margins:
    """Room for the labels; `overhang` is what slanted ones need at the right."""

    left: float
    top: float
    overhang: float
    slanted: bool


@dataclass(frozen=True)
class HeatMap:
    """A confusion matrix as squares of `side`; true classes downward, predicted ones rightward."""

    width: float
    height: float
    margins: Margins
    side: float
    gap: float
    num_squares: int
    classes_per_square: int
    cells: tuple[Cell, ...]
    labels: tuple[ClassLabel, ...]
    numbered: bool
    description: str

    def path(self, correct: bool, level: int) -> str:
        """All squares of one strength as one SVG path."""
        inner = self.side - self.gap
        return "".join(
            f"M{cell.x:g} {cell.y:g}h{inner:g}v{inner:g}h{-inner:g}z"
            for cell in self.cells
            if cell.correct is correct and cell.level == level
        )


def heat_map(evaluation: Evaluation) -> HeatMap | None:
    """The heat map of an evaluation; above 40 classes without labels, above 150 in blocks."""
    counts = evaluation.confusion
    if counts is None:
        return None
    num_classes = counts.num_classes
    labelled = num_classes <= MOST_LABELLED
    per_square = math.ceil(num_classes / MOST_SQUARES)
    num_squares = math.ceil(num_classes / per_square)
    side = _side(num_classes, num_squares)
    names = [_short_label(name) for name in evaluation.classes] if labelled else []
    margins = _margins(names, side)
    return HeatMap(
        width=margins.left + side * num_squares + margins.overhang,
        height=margins.top + side * num_squares,
        margins=margins,
        side=side,
        gap=1.5 if labelled else 0.0,
        num_squares=num_squares,
        classes_per_square=per_square,
        cells=tuple(_cells(counts, per_square, side, evaluation.classes if labelled else ())),
        labels=tuple(
            ClassLabel((index + 0.5) * side, name, evaluation.classes[index])
            for index, name in enumerate(names)
        ),
        numbered=num_classes <= MOST_NUMBERED,
        description=f"Confusion matrix of {num_classes} classes: {count(counts.num_correct)} of "
        f"{count(sum(counts.totals))} images on the diagonal.",
    )


def level(share: float, correct: bool) -> int:
    """The strength 1 to 10 of a share: linear where correct, by its square root for mistakes."""
    strength = share if correct else math.sqrt(share)
    return max(1, min(LEVELS, math.ceil(LEVELS * strength - 1e-9)))


def text_width(text: str) -> float:
    """About how wide a chart shows `text`, picture units; East Asian letters are twice as wide."""
    return sum(
        WIDE_LETTER_WIDTH if east_asian_width(letter) in "WF" else LETTER_WIDTH for letter in text
    )


def _side(num_classes: int, num_squares: int) -> float:
    if num_classes <= 12:
        return 38.0
    if num_classes <= MOST_NUMBERED:
        return 30.0
    return 19.0 if num_classes <= MOST_LABELLED else round(560 / num_squares, 2)


def _short_label(name: str) -> str:
    """A name cut to LABEL_LETTERS, or to fewer where they are wide ones."""
    wide = text_width(name) > 0.5 * (LETTER_WIDTH + WIDE_LETTER_WIDTH) * len(name)
    return shorten(name, LABEL_LETTERS * 6 // 10 if wide else LABEL_LETTERS)


def _margins(names: Sequence[str], side: float) -> Margins:
    if not names:
        return Margins(0.0, 0.0, 0.0, False)
    longest = max(map(text_width, names))
    if longest <= side:
        return Margins(14 + longest, 22.0, 0.0, False)
    overhang = max(0.0, 0.72 * text_width(names[-1]) - side / 2)
    return Margins(14 + longest, 14 + 0.77 * longest, overhang, True)


def _blocks(counts: ConfusionCounts, per_square: int) -> list[tuple[int, int, int]]:
    """(true, predicted, count) of each block of classes; on the diagonal, of right answers only."""
    found: dict[tuple[int, int], int] = {}
    for true, predicted, number in counts.cells:
        place = true // per_square, predicted // per_square
        if place[0] != place[1] or true == predicted:
            found[place] = found.get(place, 0) + number
    return [(*place, number) for place, number in sorted(found.items())]


def _cells(
    counts: ConfusionCounts, per_square: int, side: float, classes: Sequence[str]
) -> list[Cell]:
    """The squares that are not empty, titled where `classes` are given."""
    sums = counts.totals
    totals = [sum(sums[start : start + per_square]) for start in range(0, len(sums), per_square)]
    return [
        Cell(
            x=round(predicted * side, 2),
            y=round(true * side, 2),
            level=level(found / totals[true], true == predicted),
            correct=true == predicted,
            count=found,
            title=_title(classes[true], classes[predicted], found, totals[true]) if classes else "",
        )
        for true, predicted, found in _blocks(counts, per_square)
    ]


def _title(true: str, predicted: str, found: int, total: int) -> str:
    what = "recognised" if true == predicted else f"predicted as {predicted}"
    return f"{true}: {count(found)} of {count(total)} {what} ({percent(found / total)})"
