"""Plots of one run's weights: spectra per role over depth, and heat maps of block x role."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from vitune.analysis.plot_style import (
    BASE_COLOUR,
    EDGE,
    FAINT,
    INK,
    depth_colours,
    heading,
    heat_colours,
    new_figure,
    readable_on,
    svg,
)
from vitune.analysis.spectrum_report import (
    DRIFT_K,
    ChangedWeight,
    SpectrumReport,
    drift_degrees,
)
from vitune.analysis.weight_change import WeightChange
from vitune.errors import VituneError
from vitune.report import role_words

OUTSIDE = "outside"
"""Label of weights outside the blocks: patch embedding, reductions between stages."""

SMALLEST = 0.03
"""Fraction of the largest singular value below which changes are not drawn."""

MOST_ACROSS = 4
"""Roles side by side: more would make the figure wider than a page."""

POINTS = 64
"""Approximate number of points per line of changes; each is a mean over neighbouring values."""

Figure = Callable[[ChangedWeight], float | None]


def spectra_plot(name: str, report: SpectrumReport) -> bytes:
    """Singular values before and after, and their change in percent; one column per role.

    Values below 3 % of the largest are left out of the change: near zero, percentages mean nothing.

    Raises:
        VituneError: no matrix changed.
    """
    matrices = _matrices(name, report)
    roles = _roles(matrices)
    across = min(len(roles), MOST_ACROSS)
    down = math.ceil(len(roles) / across)
    with new_figure(max(6.0, 2.3 * across + 1.2), 4.2 * down + 0.6) as figure:
        depths = [weight.block for weight in matrices if weight.block is not None]
        colours = depth_colours(max(depths, default=0))
        places = _new_axes(figure, roles, across)
        for (upper, lower), role in zip(places, roles, strict=True):
            for weight in (weight for weight in matrices if weight.role == role):
                colour = INK if weight.block is None else colours.to_rgba(weight.block)
                _draw_spectrum(upper, lower, weight, colour)
            lower.axhline(0, color=EDGE, linewidth=0.8)
        upper, lower = places[0]
        upper.set_yscale("log")
        upper.set_ylim(bottom=SMALLEST / 10 * upper.get_ylim()[1])
        lower.yaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
        if depths:
            ticks = range(0, max(depths) + 1, max(1, max(depths) // 12))
            look = {"label": "block", "pad": 0.01, "aspect": 40, "ticks": ticks}
            bar = figure.colorbar(colours, ax=figure.axes, **look)
            bar.outline.set_visible(False)
            bar.ax.tick_params(length=0)
        most = max(matrices, key=lambda weight: _distortion(weight) or -1)
        distortion = _distortion(most)
        seen = (
            "leading singular values before and after"
            if distortion is None
            else f"the spectrum of {_place(most)} changes most, by {100 * distortion:.2g}\u00a0%"
        )
        heading(figure, f"{name}: {seen}")
        return svg(figure)


def _new_axes(figure: Any, roles: Sequence[str], across: int) -> list[tuple[Any, Any]]:
    """(upper, lower) axes per role, `across` of them side by side, all upper ones on one scale."""
    grid = figure.add_gridspec(2 * math.ceil(len(roles) / across), across)
    places: list[tuple[Any, Any]] = []
    for number, role in enumerate(roles):
        line, column = divmod(number, across)
        first_upper, first_lower = places[0] if places else (None, None)
        upper = figure.add_subplot(grid[2 * line, column], sharey=first_upper)
        lower = figure.add_subplot(grid[2 * line + 1, column], sharey=first_lower, sharex=upper)
        upper.set_title(role_words(role), fontweight="bold")
        upper.tick_params(labelbottom=False, labelleft=not column)
        lower.tick_params(labelleft=not column)
        lower.set_xlabel("index of the value")
        if not column:
            upper.set_ylabel("singular value (grey: base)")
            lower.set_ylabel("change relative to the base, %")
        places.append((upper, lower))
    return places


def heat_maps(
    name: str,
    report: SpectrumReport,
    *,
    most_percent: float | None = None,
    most_degrees: float | None = None,
) -> bytes:
    """Block x role: relative deviation in percent, and mean top-8 principal angle in degrees.

    A hatched field is a weight that did not change or does not exist.

    Args:
        most_percent: upper end of the first colour scale, so that runs can be compared; None takes
            this run's largest.
        most_degrees: upper end of the second.

    Raises:
        VituneError: no matrix changed.
    """
    matrices = _matrices(name, report)
    roles = _roles(matrices)
    blocks = _block_labels(matrices)
    with new_figure(1.25 * len(roles) + 2.6, 0.27 * len(blocks) + 2.0) as figure:
        left, right = figure.subplots(1, 2)
        for axes, value, top, unit, title in (
            (left, deviation_percent, most_percent, "%", "Change of the weight, ‖ΔW‖ / ‖W‖"),
            (right, drift_degrees, most_degrees, "degrees", f"Rotation of top-{DRIFT_K} subspaces"),
        ):
            grid = [[_mean(matrices, role, block, value) for role in roles] for block in blocks]
            colours = _draw_grid(axes, grid, top)
            bar = figure.colorbar(colours, ax=axes, label=unit, pad=0.02, aspect=30)
            bar.outline.set_visible(False)
            axes.set_title(title)
            words = [role_words(role) for role in roles]
            axes.set_xticks(
                range(len(roles)), words, rotation=35, ha="right", rotation_mode="anchor"
            )
            axes.set_yticks(range(len(blocks)), [str(block) for block in blocks])
        left.set_ylabel("block")
        most = max(matrices, key=lambda weight: weight.relative_deviation or 0)
        percent = deviation_percent(most) or 0
        heading(figure, f"{name}: {_place(most)} changed most, by {percent:.2g}\u00a0%")
        return svg(figure)


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
    words = role_words(weight.role)
    return words if weight.block is None else f"{words} in block {weight.block}"


def _distortion(weight: ChangedWeight) -> float | None:
    return None if weight.change is None else weight.change.spectrum_distortion


def _block_labels(matrices: Sequence[ChangedWeight]) -> list[int | str]:
    """All blocks up to the deepest, after a line for weights outside the blocks, if any."""
    depths = [weight.block for weight in matrices if weight.block is not None]
    outside = [OUTSIDE] if len(depths) < len(matrices) else []
    return [*outside, *range(max(depths, default=-1) + 1)]


def _mean(matrices: Sequence[ChangedWeight], role: str, block: int | str, value: Figure) -> float:
    """Mean over the matrices of a field (a gated MLP has two of role fc1), NaN if empty."""
    at = None if block == OUTSIDE else block
    chosen = [value(weight) for weight in matrices if (weight.role, weight.block) == (role, at)]
    known = [number for number in chosen if number is not None]
    return math.fsum(known) / len(known) if known else math.nan


def _draw_spectrum(upper: Any, lower: Any, weight: ChangedWeight, colour: Any) -> None:
    """σ' over σ in grey above, and σ' / σ − 1 in percent below, averaged over neighbours."""
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
    """A shade and its number per field, or hatching. Returns the colour scale."""
    from matplotlib.patches import Rectangle

    known = [value for line in grid for value in line if not math.isnan(value)]
    colours = heat_colours((max(known, default=0) if top is None else top) or 1.0)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlim(-0.5, len(grid[0]) - 0.5)
    axes.set_ylim(len(grid) - 0.5, -0.5)
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            corner = (x - 0.5, y - 0.5)
            if math.isnan(value):
                hatched = Rectangle(
                    corner, 1, 1, fill=False, hatch="////", edgecolor=FAINT, linewidth=0
                )
                axes.add_patch(hatched)
                continue
            shade = colours.to_rgba(value)
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=shade, edgecolor=shade, linewidth=0.4))
            ink = readable_on(shade)
            axes.text(x, y, _short(value), ha="center", va="center", color=ink, fontsize=7)
    return colours


def _short(value: float) -> str:
    """Two digits: 0.034, 0.56, 7.1, 43."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
