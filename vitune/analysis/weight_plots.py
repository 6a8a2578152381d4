"""Plots of one run's weights: spectra per role over depth, and heat maps of block x role."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from vitune.analysis.drawing import (
    BASE_COLOUR,
    HEAT_COLOURS,
    depth_colours,
    heading,
    new_figure,
    png,
    readable_on,
)
from vitune.analysis.spectrum_report import (
    DRIFT_K,
    ChangedWeight,
    SpectrumReport,
    drift_degrees,
)
from vitune.analysis.weight_change import WeightChange
from vitune.errors import VituneError

OUTSIDE = "outside"
"""Label of what stands in no block: patch embedding, reductions between stages."""

SMALLEST = 0.03
"""Part of the largest singular value below which changes are not drawn."""

POINTS = 64
"""About how many points a line of changes has; each is the mean over neighbouring values."""

Figure = Callable[[ChangedWeight], float | None]


def spectra_plot(name: str, report: SpectrumReport) -> bytes:
    """Singular values before and after, and their change in per cent; a column a role.

    Values below 3 % of the largest are left out of the change: near zero, per cents mean nothing.

    Raises:
        VituneError: no matrix changed.
    """
    matrices = _matrices(name, report)
    roles = _roles(matrices)
    with new_figure(max(6.0, 2.1 * len(roles) + 1.2), 5.0) as figure:
        axes = figure.subplots(2, len(roles), squeeze=False, sharex="col", sharey="row")
        depths = [weight.block for weight in matrices if weight.block is not None]
        colours = depth_colours(max(depths, default=0))
        for (upper, lower), role in zip(axes.T, roles, strict=True):
            for weight in (weight for weight in matrices if weight.role == role):
                colour = "black" if weight.block is None else colours.to_rgba(weight.block)
                _draw_spectrum(upper, lower, weight, colour)
            upper.set_title(role, fontweight="bold")
            lower.axhline(0, color="#888888", linewidth=0.8)
            lower.set_xlabel("number of the value")
        axes[0, 0].set_yscale("log")
        axes[0, 0].set_ylim(bottom=SMALLEST / 10 * axes[0, 0].get_ylim()[1])
        axes[0, 0].set_ylabel("singular value (grey: base)")
        axes[1, 0].set_ylabel("change against the base, %")
        axes[1, 0].yaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
        if depths:
            bar = figure.colorbar(colours, ax=axes, label="block", pad=0.01, aspect=40)
            bar.outline.set_visible(False)
            bar.ax.yaxis.get_major_locator().set_params(integer=True)
        most = max(matrices, key=lambda weight: _distortion(weight) or -1)
        distortion = _distortion(most)
        seen = (
            "leading singular values before and after"
            if distortion is None
            else f"the spectrum of {_place(most)} moves most, by {100 * distortion:.2g}\u00a0%"
        )
        heading(figure, f"{name}: {seen}")
        return png(figure)


def heat_maps(
    name: str,
    report: SpectrumReport,
    *,
    most_percent: float | None = None,
    most_degrees: float | None = None,
) -> bytes:
    """Block x role: relative deviation in per cent, and mean top-8 principal angle in degrees.

    A hatched field is a weight that did not change or that the role does not have there.

    Args:
        most_percent: upper end of the first colour scale, so that runs can be laid side by side;
            None takes this run's largest.
        most_degrees: upper end of the second.

    Raises:
        VituneError: no matrix changed.
    """
    matrices = _matrices(name, report)
    roles = _roles(matrices)
    blocks = _block_labels(matrices)
    with new_figure(1.3 * len(roles) + 3.6, 0.27 * len(blocks) + 1.8) as figure:
        left, right = figure.subplots(1, 2)
        for axes, value, top, unit, title in (
            (left, deviation_percent, most_percent, "%", "Change of the weight, ‖ΔW‖ / ‖W‖"),
            (right, drift_degrees, most_degrees, "degrees", f"Turn of its top-{DRIFT_K} subspaces"),
        ):
            grid = [[_mean(matrices, role, block, value) for role in roles] for block in blocks]
            drawn = _draw_grid(axes, grid, top)
            bar = figure.colorbar(drawn, ax=axes, label=unit, pad=0.02, aspect=30)
            bar.outline.set_visible(False)
            axes.set_title(title)
            axes.set_xticks(
                range(len(roles)), roles, rotation=35, ha="right", rotation_mode="anchor"
            )
            axes.set_yticks(range(len(blocks)), [str(block) for block in blocks])
        left.set_ylabel("block")
        most = max(matrices, key=lambda weight: weight.relative_deviation or 0)
        percent = deviation_percent(most) or 0
        heading(figure, f"{name}: {_place(most)} changed most, by {percent:.2g}\u00a0%")
        return png(figure)


def deviation_percent(weight: ChangedWeight) -> float | None:
    """100 · ‖ΔW‖_F / ‖W‖_F of one weight."""
    deviation = weight.relative_deviation
    return None if deviation is None else 100 * deviation


def _matrices(name: str, report: SpectrumReport) -> tuple[ChangedWeight, ...]:
    if not report.matrices:
        raise VituneError(
            f"run {name!r}: got no changed matrix, expected at least one to draw. {report.note}"
        )
    return report.matrices


def _roles(matrices: Sequence[ChangedWeight]) -> list[str]:
    return list(dict.fromkeys(weight.role for weight in matrices))


def _place(weight: ChangedWeight) -> str:
    return weight.role if weight.block is None else f"{weight.role} in block {weight.block}"


def _distortion(weight: ChangedWeight) -> float | None:
    return None if weight.change is None else weight.change.spectrum_distortion


def _block_labels(matrices: Sequence[ChangedWeight]) -> list[int | str]:
    """All blocks up to the deepest, after a line for what stands outside where there is any."""
    depths = [weight.block for weight in matrices if weight.block is not None]
    outside = [OUTSIDE] if len(depths) < len(matrices) else []
    return [*outside, *range(max(depths, default=-1) + 1)]


def _mean(matrices: Sequence[ChangedWeight], role: str, block: int | str, value: Figure) -> float:
    """Mean over the matrices of a field (a gated MLP has two of role fc1), NaN for none."""
    at = None if block == OUTSIDE else block
    chosen = [value(weight) for weight in matrices if (weight.role, weight.block) == (role, at)]
    known = [number for number in chosen if number is not None]
    return math.fsum(known) / len(known) if known else math.nan


def _draw_spectrum(upper: Any, lower: Any, weight: ChangedWeight, colour: Any) -> None:
    """σ' over σ in grey above, and σ' / σ − 1 in per cent below, mean over neighbours."""
    change = weight.change
    assert isinstance(change, WeightChange)
    numbers = range(1, len(change.values_before) + 1)
    upper.plot(numbers, change.values_before, color=BASE_COLOUR, linewidth=2.2, zorder=1)
    upper.plot(numbers, change.values_after, color=colour, linewidth=0.9, zorder=2)
    smallest = SMALLEST * max(change.values_before)
    both = zip(change.values_before, change.values_after, strict=True)
    moved = [100 * (new / old - 1) for old, new in both if old > smallest]
    width = max(1, len(numbers) // POINTS)
    groups = [moved[start : start + width] for start in range(0, len(moved), width)]
    middles = [1 + width * index + (len(part) - 1) / 2 for index, part in enumerate(groups)]
    lower.plot(middles, [math.fsum(part) / len(part) for part in groups], color=colour, lw=0.9)


def _draw_grid(axes: Any, grid: list[list[float]], top: float | None) -> Any:
    """The colours, and in every field its number in ink that is readable on them."""
    drawn = axes.imshow(grid, cmap=HEAT_COLOURS, vmin=0, vmax=top, aspect="auto")
    if drawn.norm.vmax <= 0:
        drawn.norm.vmax = 1.0
    axes.grid(False)
    axes.patch.set(hatch="////", facecolor="white", edgecolor="#E4E4E4", linewidth=0)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            if not math.isnan(value):
                ink = readable_on(drawn.to_rgba(value))
                axes.text(x, y, _short(value), ha="center", va="center", color=ink, fontsize=7)
    return drawn


def _short(value: float) -> str:
    """Two digits: 0.034, 0.56, 7.1, 43."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
