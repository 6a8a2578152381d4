"""Views of a confusion matrix: cells for a heat map, and which classes are taken for which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitune.report.evaluations import Evaluation
from vitune.report.formatting import count, percent, shorten

MOST_LABELLED = 40
MOST_NUMBERED = 20
MOST_SQUARES = 150
LEVELS = 10
LABEL_LETTERS = 18

Counts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Cell:
    """One filled square; `level` 1 to 10 is its strength, `title` empty where there are too many."""

    x: float
    y: float
    level: int
    correct: bool
    count: int
    title: str


@dataclass(frozen=True)
class Label:
    """A class beside its line and above its column of squares."""

    at: float
    text: str
    full: str


@dataclass(frozen=True)
class HeatMap:
    """A confusion matrix as squares of `side`; true classes downward, predicted ones rightward."""

    width: float
    height: float
    left: float
    top: float
    side: float
    num_squares: int
    classes_per_square: int
    cells: tuple[Cell, ...]
    labels: tuple[Label, ...]
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

    @property
    def gap(self) -> float:
        """The space between squares."""
        return 1.5 if self.labels else 0.0


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were taken for another."""

    label: str
    predicted: str
    count: int
    share: float


def heat_map(evaluation: Evaluation) -> HeatMap | None:
    """The heat map of an evaluation; above 40 classes unlabelled, above 150 in blocks of classes."""
    counts: Counts = evaluation.confusion
    if not counts:
        return None
    num_classes = len(counts)
    per_square = math.ceil(num_classes / MOST_SQUARES)
    counts = _in_blocks(counts, per_square)
    labelled = num_classes <= MOST_LABELLED
    side = _side(num_classes, len(counts))
    shown = [shorten(name, LABEL_LETTERS) for name in evaluation.classes]
    longest = max(map(len, shown)) if labelled else 0
    left = 14 + 6.4 * longest if labelled else 0.0
    top = 14 + 4.9 * longest if labelled else 0.0
    overhang = 3.2 * len(shown[-1]) if labelled else 0.0
    labels = [
        Label((index + 0.5) * side, text, full)
        for index, (text, full) in enumerate(zip(shown, evaluation.classes, strict=True))
    ]
    correct = sum(line[index] for index, line in enumerate(evaluation.confusion))
    total = sum(map(sum, evaluation.confusion))
    return HeatMap(
        width=left + side * len(counts) + overhang,
        height=top + side * len(counts),
        left=left,
        top=top,
        side=side,
        num_squares=len(counts),
        classes_per_square=per_square,
        cells=tuple(_cells(counts, side, evaluation.classes if labelled else None)),
        labels=tuple(labels) if labelled else (),
        numbered=num_classes <= MOST_NUMBERED,
        description=f"Confusion matrix of {num_classes} classes: {count(correct)} of "
        f"{count(total)} images on the diagonal.",
    )


def most_confused(evaluation: Evaluation, most: int = 12) -> list[Confusion]:
    """The pairs (true class, predicted class) with the most images, most first."""
    pairs = [
        Confusion(evaluation.classes[true], evaluation.classes[predicted], found, found / sum(line))
        for true, line in enumerate(evaluation.confusion)
        for predicted, found in enumerate(line)
        if found and predicted != true
    ]
    pairs.sort(key=lambda pair: (-pair.count, -pair.share, pair.label, pair.predicted))
    return pairs[:most]


def taken_for(evaluation: Evaluation) -> dict[str, Confusion]:
    """For each class the other class that its images were most often taken for."""
    found: dict[str, Confusion] = {}
    for pair in most_confused(evaluation, most=len(evaluation.classes) ** 2):
        found.setdefault(pair.label, pair)
    return found


def _side(num_classes: int, num_squares: int) -> float:
    if num_classes <= 12:
        return 38.0
    if num_classes <= MOST_NUMBERED:
        return 30.0
    return 19.0 if num_classes <= MOST_LABELLED else round(560 / num_squares, 2)


def _in_blocks(counts: Counts, per_square: int) -> list[list[int]]:
    """Sums over square blocks of neighbouring classes."""
    starts = range(0, len(counts), per_square)
    return [
        [
            sum(sum(line[left : left + per_square]) for line in counts[top : top + per_square])
            for left in starts
        ]
        for top in starts
    ]


def _cells(counts: Counts, side: float, classes: Sequence[str] | None) -> list[Cell]:
    cells = []
    for true, line in enumerate(counts):
        total = sum(line)
        for predicted, found in enumerate(line):
            if not found:
                continue
            share, correct = found / total, true == predicted
            title = ""
            if classes is not None:
                what = "recognised" if correct else f"taken for {classes[predicted]}"
                title = f"{classes[true]}: {count(found)} of {count(total)} {what} ({percent(share)})"
            cells.append(
                Cell(
                    x=round(predicted * side, 2),
                    y=round(true * side, 2),
                    level=level(share, correct),
                    correct=correct,
                    count=found,
                    title=title,
                )
            )
    return cells


def level(share: float, correct: bool) -> int:
    """The strength 1 to 10 of a share: linear where correct, by its square root for mistakes."""
    strength = share if correct else math.sqrt(share)
    return max(1, min(LEVELS, math.ceil(LEVELS * strength - 1e-9)))
