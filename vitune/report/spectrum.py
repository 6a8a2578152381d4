"""The figures of analysis/spectrum.json as one table, whatever the analysis summarised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitune.report.formatting import count, number, percent, setting
from vitune.report.parameters import ROLE_WORDS

FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "num_weights": ("weights", count),
    "accuracy": ("accuracy", percent),
    "accuracy_on": ("scored on", setting),
    "subspace_drift_degrees": ("drift", lambda angle: f"{number(angle, 2)}°"),
    "decisions_kept": ("decisions kept", percent),
    "relative_deviation": ("change ‖ΔW‖ / ‖W‖", percent),
    "spectrum_distortion": ("change of spectrum", percent),
    "effective_rank": ("effective rank of ΔW", lambda rank: number(rank, 3)),
    "stable_rank": ("stable rank of ΔW", lambda rank: number(rank, 3)),
    "subspace_degrees": ("rotation of the top 8", lambda angle: f"{number(angle, 2)}°"),
    "left_share": ("ΔW in the left top 8", percent),
    "right_share": ("ΔW in the right top 8", percent),
    "left_loss": ("left basis lost", lambda loss: number(loss, 2)),
    "right_loss": ("right basis lost", lambda loss: number(loss, 2)),
    "num_intruders": ("intruders", count),
}
"""The headings of the analysis' figures, and how they are formatted."""


@dataclass(frozen=True)
class FigureTable:
    """A table of text cells; the first of each line names it."""

    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def figure_table(spectrum: dict[str, Any]) -> FigureTable | None:
    """The table of spectrum.json's `summary`: name -> figures, a list of figures, or figures.

    Nested figures are headed `outer inner`. None if there is no summary.
    """
    summary = spectrum.get("summary")
    if isinstance(summary, dict) and summary:
        if not any(isinstance(value, dict) for value in summary.values()):
            lines = [(_words(name), _cell(value)) for name, value in summary.items()]
            return FigureTable(("figure", "value"), tuple(lines))
        named = [(str(name), _flat(value)) for name, value in summary.items()]
    elif isinstance(summary, list) and summary:
        named = [(str(index), _flat(value)) for index, value in enumerate(summary, start=1)]
    else:
        return None
    headings = list(dict.fromkeys(key for _, figures in named for key in figures))
    return FigureTable(
        ("", *(FIGURES[key][0] if key in FIGURES else _words(key) for key in headings)),
        tuple(
            (ROLE_WORDS.get(name, name), *(_figure(key, figures.get(key)) for key in headings))
            for name, figures in named
        ),
    )


def map_table(spectrum: dict[str, Any]) -> FigureTable | None:
    """What each method did to left basis, spectrum and right basis: spectrum.json's `maps`.

    None if there are none.
    """
    maps = spectrum.get("maps")
    if not isinstance(maps, list) or not all(isinstance(row, dict) for row in maps) or not maps:
        return None
    left_out = ("method", "epoch", "num_runs")
    keys = [key for key in maps[0] if key not in left_out and not key.endswith("_std")]
    lines = []
    for row in maps:
        epoch = "kept weights" if row.get("epoch") is None else f"epoch {row['epoch']}"
        cells = (_cell(row.get(key)) for key in keys)
        lines.append((str(row.get("method", "")), epoch, *cells))
    return FigureTable(("method", "when", *map(_words, keys)), tuple(lines))


def _flat(value: Any, before: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {before or "value": value}
    figures: dict[str, Any] = {}
    for key, part in value.items():
        figures |= _flat(part, f"{before} {key}".strip())
    return figures


def _figure(key: str, value: Any) -> str:
    """A value formatted as FIGURES says."""
    if key not in FIGURES or value is None or isinstance(value, bool | list | dict):
        return _cell(value)
    show = FIGURES[key][1]
    return show(value) if isinstance(value, int | float) or show is setting else _cell(value)


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "–" if value is None else setting(value)
    if isinstance(value, int):
        return count(value)
    return number(value) if isinstance(value, float) else setting(value)
