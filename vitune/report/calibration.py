"""The reliability diagram: how often the model is right at each stated confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitune.report.evaluations import Evaluation
from vitune.report.formatting import percent
from vitune.report.intervals import wilson_interval
from vitune.report.scales import Scale, Tick

WIDTH, HEIGHT = 380, 400
X = Scale(0.0, 1.0, 52.0, 366.0)
Y = Scale(0.0, 1.0, 314.0, 14.0)
SHARE_BASE, SHARE_TOP = 366.0, 324.0
BAR_WIDTH = 9.0


@dataclass(frozen=True)
class Bubble:
    """One bin: its position, its 95 % interval, the diagonal it should lie on, its share's bar."""

    x: float
    y: float
    y_low: float
    y_high: float
    y_ideal: float
    radius: float
    bar_height: float
    over_confident: bool
    title: str


@dataclass(frozen=True)
class Reliability:
    """The diagram, and in words whether the model is over- or underconfident."""

    bubbles: tuple[Bubble, ...]
    ticks: tuple[tuple[Tick, Tick], ...]
    mean_confidence: float
    accuracy: float
    verdict: str
    description: str


def reliability(evaluation: Evaluation) -> Reliability | None:
    """The reliability diagram of an evaluation; None where it holds no calibration bins."""
    bins = evaluation.calibration
    if not bins:
        return None
    total = math.fsum(entry.share for entry in bins)
    largest = max(entry.share for entry in bins)
    confidence = math.fsum(entry.share * entry.confidence for entry in bins) / total
    accuracy = math.fsum(entry.share * entry.accuracy for entry in bins) / total
    independent = (evaluation.effective_images or evaluation.num_images) / evaluation.num_images
    bubbles = []
    for entry in bins:
        num_images = max(1, round(entry.share * evaluation.num_images))
        low, high = wilson_interval(entry.accuracy, num_images * independent)
        bubbles.append(
            Bubble(
                x=X(entry.confidence),
                y=Y(entry.accuracy),
                y_low=Y(low),
                y_high=Y(high),
                y_ideal=Y(entry.confidence),
                radius=round(3 + 7 * math.sqrt(entry.share / largest), 2),
                bar_height=round((SHARE_BASE - SHARE_TOP) * entry.share / largest, 2),
                over_confident=entry.confidence > entry.accuracy,
                title=f"says {percent(entry.confidence)}, is right in {percent(entry.accuracy)} "
                f"of {num_images} images",
            )
        )
    fifths = [index / 5 for index in range(6)]
    verdict = _verdict(confidence, accuracy, evaluation.interval)
    return Reliability(
        bubbles=tuple(bubbles),
        ticks=tuple((Tick(X(at), f"{at:.0%}"), Tick(Y(at), f"{at:.0%}")) for at in fifths),
        mean_confidence=confidence,
        accuracy=accuracy,
        verdict=verdict,
        description=f"Reliability diagram with {len(bubbles)} bins: mean confidence "
        f"{percent(confidence)}, accuracy {percent(accuracy)}; the model is {verdict}.",
    )


def _verdict(confidence: float, accuracy: float, interval: tuple[float, float]) -> str:
    """Over- or under-confident only if the mean confidence is outside the accuracy's interval."""
    if interval[0] <= confidence <= interval[1]:
        return "neither over- nor under-confident overall"
    return "over-confident" if confidence > accuracy else "under-confident"
