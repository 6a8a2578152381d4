"""The pages of a membership audit: one HTML file with ROC curves, and the same figures as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitune.files import write_atomic
from vitune.privacy.membership import AttackResult
from vitune.privacy.membership_findings import MembershipFound, in_words
from vitune.report import Scale, Tick, percent, write_page

PAGE, FIGURES = "membership.html", "membership.json"
WIDTH, LEFT, RIGHT, TOP, BASE = 460, 52, 14, 14, 282
COLOURS = ("main", "head", "wrong", "quiet", "main-soft")
ATTACKS = {"loss": "by loss", "rmia": "RMIA"}


@dataclass(frozen=True)
class RocLine:
    """One ROC curve: an SVG path, the style sheet's colour, and whether it is dashed."""

    name: str
    path: str
    colour: str
    dashed: bool


@dataclass(frozen=True)
class RocChart:
    """ROC curves on one pair of axes; `chance` is the path of the diagonal."""

    title: str
    description: str
    lines: tuple[RocLine, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    chance: str


def write_membership_page(folder: str | Path, found: MembershipFound) -> Path:
    """Write PAGE and FIGURES into `folder`; returns the page."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write_atomic(target / FIGURES, json.dumps(found.as_dict(), indent=1))
    context = {
        "found": found,
        "sentence": in_words(found),
        "attacks": ATTACKS,
        "charts_of": roc_charts(found.results),
    }
    return write_page(
        target / PAGE, "membership.html", context, folder=Path(__file__).parent / "templates"
    )


def roc_charts(results: Sequence[AttackResult]) -> tuple[RocChart, RocChart]:
    """All curves on linear axes, and on logarithmic ones that begin at one of the others."""
    low = 10.0 ** -max(1, math.ceil(math.log10(results[0].num_others)))
    powers = [10.0**power for power in range(round(math.log10(low)), 1)]
    return (
        _chart("ROC", results, 0.0, [0, 0.25, 0.5, 0.75, 1]),
        _chart("ROC, logarithmic axes", results, low, powers),
    )


def _chart(
    title: str, results: Sequence[AttackResult], low: float, places: Sequence[float]
) -> RocChart:
    x = Scale(low, 1.0, LEFT, WIDTH - RIGHT, log=low > 0)
    y = Scale(low, 1.0, BASE, TOP, log=low > 0)
    models = list(dict.fromkeys(one.model for one in results))
    lines = tuple(
        RocLine(
            f"{one.model}, {ATTACKS[one.attack]}",
            _path(one, x, y, low),
            COLOURS[models.index(one.model) % len(COLOURS)],
            one.attack == "loss",
        )
        for one in results
    )
    areas = "; ".join(
        f"{line.name}: AUC {one.auc.value:.2f}" for line, one in zip(lines, results, strict=True)
    )
    return RocChart(
        title,
        f"{title}, members recognised against others accused. {areas}.",
        lines,
        tuple(Tick(x(place), percent(place, 0)) for place in places),
        tuple(Tick(y(place), percent(place, 0)) for place in places),
        f"M{x(low or 0):g} {y(low or 0):g}L{x(1):g} {y(1):g}",
    )


def _path(one: AttackResult, x: Scale, y: Scale, low: float) -> str:
    """The curve; on logarithmic axes without what lies below one of the others."""
    points = [
        f"{x(max(fpr, low)):g} {y(max(tpr, low)):g}"
        for fpr, tpr in zip(one.fpr, one.tpr, strict=True)
    ]
    return "M" + "L".join(dict.fromkeys(points))
