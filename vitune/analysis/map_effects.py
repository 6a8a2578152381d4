"""What each method did to left basis, spectrum and right basis: one row per method and epoch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vitune.analysis.plot_style import heading, new_figure, run_style, svg
from vitune.analysis.spectrum_report import DRIFT_K, RoleSummary
from vitune.errors import VituneError

TURN = f"rotation of top {DRIFT_K}"
FIGURES: Mapping[str, tuple[str, str]] = {
    "relative_deviation": ("weight", "‖ΔW‖ / ‖W‖"),
    "left_loss": ("left basis", "lost orthogonality"),
    "left_degrees": ("left basis", TURN),
    "spectrum_distortion": ("spectrum", "‖Δσ‖ / ‖σ‖"),
    "right_loss": ("right basis", "lost orthogonality"),
    "right_degrees": ("right basis", TURN),
    "core_diagonal": ("core UᵀΔWV", "on the diagonal"),
    "core_off_diagonal": ("core UᵀΔWV", "off the diagonal"),
    "core_outside": ("core UᵀΔWV", "outside"),
    "core_leading": ("core UᵀΔWV", f"among the first {DRIFT_K}"),
}
"""Field of `RoleSummary` -> the part it describes, and its heading."""

DRAWN = ("left_loss", "spectrum_distortion", "right_loss", "core_diagonal")


@dataclass(frozen=True)
class MapEffect:
    """One method at one point in training.

    Args:
        method: its label.
        epoch: epochs done, 0 before the first step; None for the weights that a run keeps.
        num_runs: how many runs (seeds, data sets) are averaged.
        means: by the names of FIGURES; each the mean over a run's changed matrices, then over runs.
            None if no run has the figure.
        stds: sample standard deviations over runs; None for fewer than two.
    """

    method: str
    epoch: int | None
    num_runs: int
    means: Mapping[str, float | None]
    stds: Mapping[str, float | None]

    @property
    def label(self) -> str:
        """The method, and the epoch unless it is the end."""
        return self.method if self.epoch is None else f"{self.method}, epoch {self.epoch}"


Measured = tuple[str, int | None, RoleSummary]
"""Method, epoch and the summary of all changed matrices of one run."""


def map_effects(measured: Sequence[Measured]) -> tuple[MapEffect, ...]:
    """One row per method and epoch, with runs of the same method combined.

    Raises:
        VituneError: nothing was measured.
    """
    if not measured:
        raise VituneError("measured: got no run, expected at least one.")
    assert set(FIGURES) <= {field.name for field in fields(RoleSummary)}
    groups: dict[tuple[str, int | None], list[RoleSummary]] = defaultdict(list)
    for method, epoch, summary in measured:
        groups[method, epoch].append(summary)
    methods = list(dict.fromkeys(method for method, _, _ in measured))
    order = sorted(groups, key=lambda at: (methods.index(at[0]), at[1] is None, at[1] or 0))
    return tuple(_effect(*at, groups[at]) for at in order)


def effect_cells(effects: Sequence[MapEffect]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and lines of text: shares and ratios in percent, rotations in degrees."""
    heads = ("method", *(f"{part}: {name}" for part, name in FIGURES.values()))
    return heads, [(effect.label, *(_cell(effect, key) for key in FIGURES)) for effect in effects]


def effect_records(effects: Sequence[MapEffect]) -> list[dict[str, Any]]:
    """One flat record per row, for spectrum.json and maps.csv."""
    return [
        {
            "method": effect.method,
            "epoch": effect.epoch,
            "num_runs": effect.num_runs,
            **effect.means,
            **{f"{key}_std": value for key, value in effect.stds.items()},
        }
        for effect in effects
    ]


def along_training_plot(effects: Sequence[MapEffect]) -> bytes:
    """Left loss, spectrum, right loss and the core's diagonal over epochs, one line per method.

    Raises:
        VituneError: no method has figures at two epochs.
    """
    lines: dict[str, list[MapEffect]] = defaultdict(list)
    for effect in effects:
        if effect.epoch is not None:
            lines[effect.method].append(effect)
    if not any(len(line) > 1 for line in lines.values()):
        raise VituneError("effects: got no method at two epochs, expected one to draw.")
    with new_figure(9.0, 5.6) as figure:
        for axes, key in zip(figure.subplots(2, 2, sharex=True).flat, DRAWN, strict=True):
            for index, (method, line) in enumerate(lines.items()):
                values = [math.nan if (m := e.means[key]) is None else 100 * m for e in line]
                epochs = [effect.epoch for effect in line]
                axes.plot(epochs, values, label=method, markersize=5, **run_style(index))
            axes.set_title(": ".join(FIGURES[key]) + ", %")
            axes.set_ylim(bottom=0)
        for axes in figure.axes[2:]:
            axes.set_xlabel("epochs")
            axes.xaxis.get_major_locator().set_params(integer=True)
        if len(lines) > 1:
            figure.axes[0].legend(loc="upper left")
        heading(figure, "What training does to the singular bases and values of the weights")
        return svg(figure)


def _effect(method: str, epoch: int | None, runs: Sequence[RoleSummary]) -> MapEffect:
    means: dict[str, float | None] = {}
    stds: dict[str, float | None] = {}
    for key in FIGURES:
        known = [value for run in runs if (value := getattr(run, key)) is not None]
        mean = math.fsum(known) / len(known) if known else None
        means[key], stds[key] = mean, None
        if mean is not None and len(known) > 1:
            spread = math.fsum((value - mean) ** 2 for value in known)
            stds[key] = math.sqrt(spread / (len(known) - 1))
    return MapEffect(method, epoch, len(runs), means, stds)


def _cell(effect: MapEffect, key: str) -> str:
    """Three digits, and the spread over runs with the same number of decimals."""
    mean, std = effect.means[key], effect.stds[key]
    if mean is None:
        return "–"
    unit, scale = ("°", 1.0) if key.endswith("degrees") else (" %", 100.0)
    value = scale * mean
    places = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    spread = "" if std is None else f" ± {scale * std:.{places}f}"
    return f"{value:.{places}f}{spread}{unit}"
