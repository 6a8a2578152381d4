"""Which classes are mistaken for which, from a confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

from vitune.report.evaluations import Evaluation


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were predicted as another; `share` is their share of the class."""

    label: str
    predicted: str
    count: int
    share: float


def most_confused(evaluation: Evaluation, most: int | None = 12) -> list[Confusion]:
    """The pairs (true class, predicted class) with the most images, most first; all for None."""
    counts, names = evaluation.confusion, evaluation.classes
    if counts is None:
        return []
    pairs = [
        Confusion(names[true], names[predicted], found, found / counts.totals[true])
        for true, predicted, found in counts.cells
        if predicted != true
    ]
    pairs.sort(key=lambda pair: (-pair.count, -pair.share, pair.label, pair.predicted))
    return pairs[:most]


def taken_for(evaluation: Evaluation) -> dict[str, Confusion]:
    """For each class, the other class that its images were most often mistaken for."""
    found: dict[str, Confusion] = {}
    for pair in most_confused(evaluation, most=None):
        found.setdefault(pair.label, pair)
    return found
