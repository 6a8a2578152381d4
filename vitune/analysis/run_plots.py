"""Plots that compare runs: CKA over depth, and accuracy against subspace drift."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vitune.analysis.plot_style import EDGE, heading, new_figure, run_style, svg
from vitune.analysis.retention import Retention
from vitune.analysis.spectrum_report import DRIFT_K
from vitune.errors import VituneError

# Positions for a dot's name, in points from the dot: the first free one is used.
_PLACES = (
    (9, 0, "left", "center"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
    (-9, 0, "right", "center"),
    (9, 12, "left", "bottom"),
    (9, -12, "left", "top"),
    (-9, 12, "right", "bottom"),
    (-9, -12, "right", "top"),
)


def cka_plot(retentions: Mapping[str, Retention]) -> bytes:
    """Linear CKA with the base over depth, one line per run.

    Raises:
        VituneError: there is no run.
    """
    if not retentions:
        raise VituneError("retentions: got none, expected at least one run to draw.")
    last = {name: _last_cka(kept) for name, kept in retentions.items()}
    with new_figure(5.1, 3.8) as figure:
        axes = figure.subplots()
        for index, (name, kept) in enumerate(retentions.items()):
            values = [math.nan if part.cka is None else part.cka for part in kept.blocks]
            depths = [part.block for part in kept.blocks]
            axes.plot(depths, values, label=name, markersize=5, **run_style(index))
        axes.set_xlabel("block")
        axes.set_ylabel("linear CKA with the base (1: same features)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(top=1 + 0.03 * (1 - axes.get_ylim()[0]))
        if len(retentions) > 1:
            axes.legend(loc="lower left")
        least, most = min(last, key=lambda name: last[name]), max(last, key=lambda name: last[name])
        span = f"{last[least]:.2f} ({least})"
        if len(last) > 1:
            span += f" to {last[most]:.2f} ({most})"
        heading(figure, f"Features after the last block: CKA with the base {span}")
        return svg(figure)


def tradeoff_plot(
    drifts: Mapping[str, float],
    accuracies: Mapping[str, float],
    validated: Collection[str] = (),
) -> bytes:
    """Adaptation against retention: accuracy over subspace drift, a labelled dot per run.

    Accuracies on test images are filled dots, those on validation images open ones: the images
    differ, and a validation accuracy may have chosen settings, so the two cannot be compared.

    Args:
        drifts: `SpectrumReport.subspace_drift_degrees` by run.
        accuracies: in [0, 1], by run; runs in only one of the two are left out.
        validated: the runs whose accuracy is on validation images; the others' is on test images.

    Raises:
        VituneError: no run has both figures, or an accuracy is outside [0, 1].
    """
    names = [name for name in drifts if name in accuracies]
    if not names:
        raise VituneError("accuracies: got no run that has a drift too, expected at least one.")
    for name in names:
        if not 0 <= accuracies[name] <= 1:
            raise VituneError(
                f"accuracy of {name!r}: got {accuracies[name]!r}, expected a share in [0, 1]."
            )
    on = {name: "validation" if name in validated else "test" for name in names}
    with new_figure(5.1, 3.8) as figure:
        axes = figure.subplots()
        points = {name: (drifts[name], 100 * accuracies[name]) for name in names}
        for index, (name, (drift, accuracy)) in enumerate(points.items()):
            style = run_style(index)
            face = "none" if on[name] == "validation" else style["color"]
            look = {"edgecolors": style["color"], "facecolors": face, "marker": style["marker"]}
            axes.scatter(drift, accuracy, s=60, zorder=3, linewidths=1.6, **look)
        axes.margins(0.2, 0.15)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]) if min(drifts.values()) == 0 else None)
        axes.set_xlabel(f"subspace drift: mean rotation of the top-{DRIFT_K} subspaces, degrees")
        kinds = sorted(set(on.values()))
        axes.set_ylabel(f"accuracy on {' or '.join(kinds)} images, %")
        if len(kinds) > 1:
            for kind, face in (("test", EDGE), ("validation", "none")):
                label = f"on {kind} images"
                axes.scatter([], [], s=60, edgecolors=EDGE, facecolors=face, label=label)
            axes.legend(loc="best")
            heading(figure, "Accuracy on test and on validation images: compare within one kind")
        else:
            heading(figure, _verdict(drifts, accuracies, names))
        _name_dots(figure, axes, points)
        return svg(figure)


def _verdict(
    drifts: Mapping[str, float], accuracies: Mapping[str, float], names: Sequence[str]
) -> str:
    """Which run is most accurate, and which drifts least."""
    best = max(names, key=lambda name: accuracies[name])
    close = min(names, key=lambda name: drifts[name])
    accuracy, drift = f"{100 * accuracies[best]:.1f}\u00a0%", f"{drifts[close]:.2g}°"
    if len(names) == 1:
        return f"{best}: accuracy {accuracy}, drift {drift}"
    if best == close:
        return f"{best} is most accurate ({accuracy}) and drifts least ({drift})"
    return f"{best} is most accurate ({accuracy}), {close} drifts least ({drift})"


def _last_cka(kept: Retention) -> float:
    values = [part.cka for part in kept.blocks if part.cka is not None]
    return values[-1] if values else math.nan


def _name_dots(figure: Any, axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Write every name next to its dot, without covering a dot or another name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    at = axes.transData.transform(list(points.values()))
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in at]
    for name, point in points.items():
        for x, y, across, upright in _PLACES:
            label = axes.annotate(
                name, point, (x, y), textcoords="offset points", ha=across, va=upright
            )
            box = label.get_window_extent(renderer)
            inside = box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
            free = inside and not any(box.overlaps(other) for other in taken)
            if free or (x, y) == _PLACES[-1][:2]:
                taken.append(box)
                break
            label.remove()
