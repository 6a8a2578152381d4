"""The figures of analysis/spectrum.json as one table, whatever the analysis chose to sum up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitune.report.formatting import count, number, setting


@dataclass(frozen=True)
class FigureTable:
    """A table of text cells; the first of each line names it."""

    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def figure_table(spectrum: dict[str, Any]) -> FigureTable | None:
    """The table of spectrum.json's `summary`: name -> figures, a list of figures, or figures.

    Figures inside figures are told as `outer inner`. None where there is no summary.
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
        ("", *map(_words, headings)),
        tuple((name, *(_cell(figures.get(key)) for key in headings)) for name, figures in named),
    )


def map_table(spectrum: dict[str, Any]) -> FigureTable | None:
    """What each method did to left basis, spectrum and right basis: spectrum.json's `maps`.

    None where there are none.
    """
    maps = spectrum.get("maps")
    if not isinstance(maps, list) or not all(isinstance(row, dict) for row in maps) or not maps:
        return None
    left_out = ("method", "epoch", "num_runs")
    keys = [key for key in maps[0] if key not in left_out and not key.endswith("_std")]
    lines = []
    for row in maps:
        epoch = "the weights kept" if row.get("epoch") is None else f"epoch {row['epoch']}"
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


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "–" if value is None else setting(value)
    if isinstance(value, int):
        return count(value)
    return number(value) if isinstance(value, float) else setting(value)
