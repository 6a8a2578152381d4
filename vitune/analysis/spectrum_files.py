"""The folder that `vitune analyze` writes: spectrum.json, spectrum.csv, captions and plots."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitune.analysis.map_effects import MapEffect, along_training_plot, effect_records
from vitune.analysis.retention import Retention
from vitune.analysis.run_plots import cka_plot, tradeoff_plot
from vitune.analysis.spectrum_report import (
    DRIFT_K,
    SpectrumReport,
    drift_degrees,
    without_map_figures,
)
from vitune.analysis.tabulation import csv_text, rounded, weight_records
from vitune.analysis.weight_plots import deviation_percent, heat_maps, spectra_plot
from vitune.errors import VituneError
from vitune.files import write_atomic

FORMAT = 1
"""Version of spectrum.json; a reader refuses newer ones."""


def write_spectrum(
    out_dir: str | Path,
    reports: Mapping[str, SpectrumReport],
    accuracies: Mapping[str, float] | None = None,
    retentions: Mapping[str, Retention] | None = None,
    effects: Sequence[MapEffect] = (),
    *,
    validated: Collection[str] = (),
) -> tuple[Path, ...]:
    """Write the results of the runs into `out_dir`, every file atomically.

    spectrum.json holds `runs` (name -> note, weights, retention, accuracy) and `summary`, the table
    a report prints: by role for one run, by run for several. spectrum.csv
    has one line per run and weight. spectra-RUN.svg and heatmap-RUN.svg are drawn for runs with
    changed matrices, the heat maps on one colour scale; cka.svg if there is a retention;
    accuracy-drift.svg if a run has an accuracy and a drift. With `effects` spectrum.json holds
    `maps`, what each method did to left basis, spectrum and right basis, maps.csv the same, and
    along-training.svg draws it over epochs if there are several. captions.json explains each plot
    under its name.

    Args:
        reports: by run name.
        accuracies: in [0, 1], by run name.
        retentions: by run name.
        effects: rows of `map_effects`.
        validated: the runs whose accuracy is on validation images; the others' is on test images.

    Returns:
        The files written.

    Raises:
        VituneError: no run, or an accuracy or a retention of a run that has no report.
    """
    accuracies, retentions = dict(accuracies or {}), dict(retentions or {})
    _check(reports, accuracies, retentions)
    plots = _plots(reports, accuracies, retentions, validated)
    if len({effect.epoch for effect in effects} - {None}) > 1:
        plots["along-training.svg"] = (along_training_plot(effects), _ALONG)
    maps = rounded(effect_records(effects))
    record = _record(reports, accuracies, retentions, validated)
    files: dict[str, str | bytes] = {
        "spectrum.json": _json({**record, "maps": maps}),
        "spectrum.csv": csv_text(
            [
                {"run": name, **record}
                for name, report in reports.items()
                for record in weight_records(report.weights)
            ]
        ),
        **({"maps.csv": csv_text(maps)} if maps else {}),
        "captions.json": _json({name: caption for name, (_, caption) in plots.items()}),
        **{name: content for name, (content, _) in plots.items()},
    }
    folder = Path(out_dir)
    for name, content in files.items():
        write_atomic(folder / name, content)
    return tuple(folder / name for name in files)


def _check(
    reports: Mapping[str, SpectrumReport],
    accuracies: Mapping[str, float],
    retentions: Mapping[str, Retention],
) -> None:
    if not reports:
        raise VituneError("reports: got no run, expected at least one.")
    for what, given in (("accuracies", accuracies), ("retentions", retentions)):
        odd = sorted(set(given) - set(reports))
        if odd:
            raise VituneError(f"{what}: got {odd!r}, expected runs among {sorted(reports)!r}.")


def _record(
    reports: Mapping[str, SpectrumReport],
    accuracies: Mapping[str, float],
    retentions: Mapping[str, Retention],
    validated: Collection[str],
) -> dict[str, Any]:
    """spectrum.json."""
    on = {name: "validation" if name in validated else "test" for name in accuracies}
    runs = {
        name: {
            **report.to_dict(),
            "accuracy": accuracies.get(name),
            "accuracy_on": on.get(name),
            "retention": retentions[name].to_dict() if name in retentions else None,
        }
        for name, report in reports.items()
    }
    summary: dict[str, Any]
    if len(reports) == 1:
        (only,) = runs.values()
        summary = only["summary"]
    else:
        summary = {
            name: {
                "accuracy": accuracies.get(name),
                "accuracy_on": on.get(name),
                "subspace_drift_degrees": report.subspace_drift_degrees,
                "decisions_kept": retentions[name].decisions_kept if name in retentions else None,
                **without_map_figures(report.overall),
            }
            for name, report in reports.items()
        }
    record: dict[str, Any] = rounded({"format": FORMAT, "summary": summary, "runs": runs})
    return record


def _plots(
    reports: Mapping[str, SpectrumReport],
    accuracies: Mapping[str, float],
    retentions: Mapping[str, Retention],
    validated: Collection[str],
) -> dict[str, tuple[bytes, str]]:
    """File name -> SVG and caption."""
    plots: dict[str, tuple[bytes, str]] = {}
    drawn = {name: report for name, report in reports.items() if report.matrices}
    matrices = [weight for report in drawn.values() for weight in report.matrices]
    scales = {
        "most_percent": max((deviation_percent(weight) or 0 for weight in matrices), default=None),
        "most_degrees": max((drift_degrees(weight) or 0 for weight in matrices), default=None),
    }
    drifts = {
        name: drift
        for name, report in reports.items()
        if (drift := report.subspace_drift_degrees) is not None
    }
    if drifts.keys() & accuracies.keys():
        plots["accuracy-drift.svg"] = (
            tradeoff_plot(drifts, accuracies, validated),
            _TRADEOFF,
        )
    for (name, report), file_name in zip(drawn.items(), _file_names(drawn), strict=True):
        plots[f"heatmap-{file_name}.svg"] = (heat_maps(name, report, **scales), _HEAT)
        plots[f"spectra-{file_name}.svg"] = (spectra_plot(name, report), _SPECTRA)
    if retentions:
        plots["cka.svg"] = (cka_plot(retentions), _CKA)
    return plots


def _file_names(names: Mapping[str, Any]) -> list[str]:
    """Run names as valid file names, numbered if two become the same."""
    chosen: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "run"
        number = 1
        while (unique := plain if number == 1 else f"{plain}-{number}") in chosen:
            number += 1
        chosen.append(unique)
    return chosen


def _json(values: Any) -> str:
    return json.dumps(values, allow_nan=False, ensure_ascii=False) + "\n"


_TRADEOFF = (
    f"Accuracy against subspace drift: the mean angle by which the top-{DRIFT_K} singular "
    "subspaces of all weights rotated. Higher is better adapted, further left is closer to the "
    "pre-trained network. Filled dots are scored on test images, open ones on validation images; "
    "do not compare the two."
)
_HEAT = (
    "Left: relative change of every adapted weight. Right: mean principal angle between its "
    f"top-{DRIFT_K} left and right singular subspaces before and after. Hatched fields did not "
    "change."
)
_SPECTRA = (
    "Singular values of every adapted weight, largest first, coloured by depth over the base in "
    "grey; below, their change, mean over neighbouring values."
)
_ALONG = (
    "What each method's map does to the parts of W = U diag(σ) Vᵀ, during training. Lost "
    "orthogonality of a basis: 0 if its vectors stay orthogonal under the change. The diagonal "
    "of the core UᵀΔWV is the part that changes singular values and rotates no vector."
)
_CKA = (
    "Linear CKA between the features of the base and of the adapted network after every block: 1 "
    "means the same features up to rotation and scale."
)
