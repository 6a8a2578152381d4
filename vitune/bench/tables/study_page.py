"""The page of a study: its table, what accuracy costs, how certain the differences are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitune.bench.study.choosing import needs_selection
from vitune.bench.study.plan import Study
from vitune.bench.study.protocol import Choice
from vitune.bench.tables.rank_diagram import rank_diagram
from vitune.bench.tables.shots_chart import shots_chart
from vitune.bench.tables.study_table import Table, TableRow
from vitune.bench.tables.sureness import SIGNIFICANT, explanation, interval_text, p_text, verdict
from vitune.bench.tables.table_formats import as_grid, label_of, split_text
from vitune.methods import get_method
from vitune.report.formatting import count, duration
from vitune.report.rendering import write_page
from vitune.report.scatter import Measured, ScatterChart, scatter_chart

TEMPLATES = Path(__file__).parent / "templates"


def write_study_page(
    table: Table,
    out: str | Path,
    *,
    heading: str,
    note: str = "",
    choices: Sequence[Choice] = (),
    sources: Sequence[str] = (),
    shots: Mapping[str, int] | None = None,
) -> Path:
    """Write one self-contained HTML file about a study and return its path.

    Args:
        heading: what was compared, in a few words.
        note: one or two sentences below it: data, backbone, protocol.
        choices: what stage 1 chose.
        sources: where published figures come from.
        shots: training images per class, by task; two or more numbers give a curve.

    Raises:
        VituneError: `out` is a folder.
    """
    several = len({row.backbone for row in table.rows}) > 1
    context: dict[str, Any] = {
        "heading": heading,
        "note": note,
        "table": table,
        "grid": as_grid(table),
        "labels": [label_of(row, several) for row in table.rows],
        "inflation": inflation(table),
        "shots": shots_chart(table, shots or {}),
        "scatters": _scatters(table, several),
        "differences": table.differences,
        "these_tasks": "this task" if len(table.tasks) == 1 else "these tasks",
        "wide": any(found.on_others is not None for found in table.differences),
        "verdict": verdict(table),
        "explanation": explanation(table.differences),
        "interval_text": interval_text,
        "p_text": p_text,
        "ranking": table.ranking,
        "no_ranking": table.no_ranking,
        "diagram": None if table.ranking is None else rank_diagram(table.ranking),
        "choices": _by_label(choices),
        "sources": list(dict.fromkeys([*sources, *_sources(table)])),
    }
    return write_page(Path(out), "study.html", context, folder=TEMPLATES)


def note_on(study: Study, table: Table) -> str:
    """The note below the heading of a study's page: backbone, runs, protocol, which accuracy."""
    seeds = "1 seed" if len(study.seeds) == 1 else f"{len(study.seeds)} seeds"
    parts = [f"{study.backbone}, {epochs_text(study)}, {seeds}; protocol {study.protocol}."]
    if study.protocol == "as-published":
        parts.append(
            "The official recipe, which sees the test images every epoch, next to the honest "
            "protocol."
        )
        return " ".join(parts)
    if any(needs_selection(study, variant) for variant in study.variants):
        parts.append("Settings chosen on validation images.")
    return " ".join([*parts, f"Accuracy on {split_text(table)}. Speed: {table.speed}."])


def epochs_text(study: Study) -> str:
    """The epochs of the study's runs: "20 epochs", or "3 to 20 epochs" where settings differ."""
    stepping = [variant for variant in study.variants if not get_method(variant.method).solved]
    lengths = {study.epochs_of(variant, task) for variant in stepping for task in study.tasks}
    least, most = min(lengths, default=study.epochs), max(lengths, default=study.epochs)
    if least < most:
        return f"{least} to {most} epochs"
    return "1 epoch" if most == 1 else f"{most} epochs"


def _by_label(choices: Sequence[Choice]) -> dict[str, dict[str, Choice]]:
    found: dict[str, dict[str, Choice]] = {}
    for choice in choices:
        found.setdefault(choice.label, {})[choice.task] = choice
    return found


def inflation(table: Table) -> list[tuple[str, float, float]]:
    """(label, best test epoch, last epoch of the same runs) of every as-published pair, means."""
    by_kind = {(row.label, row.backbone, row.protocol): row for row in table.rows}
    found = []
    for (label, backbone, protocol), row in by_kind.items():
        if protocol == "as-published: best test epoch" and row.figures:
            last = by_kind[label, backbone, "as-published: last epoch"]
            found.append((label, row.mean, last.mean))
    return found


def _scatters(table: Table, several: bool) -> list[ScatterChart]:
    """Accuracy against parameters, processor time and drift, for the rows that have them.

    Wall-clock time is not drawn: it would show the machine's other load.
    """
    kinds: list[tuple[str, str, Callable[[TableRow], float | None], Callable[[float], str]]] = [
        (
            "Accuracy against trainable parameters",
            "trainable parameters without the head (logarithmic)",
            lambda row: row.num_parameters,
            lambda cost: f"{count(cost)} parameters",
        ),
        (
            "Accuracy against processor time",
            "processor seconds of training per run, waiting excluded (logarithmic)",
            lambda row: row.cpu_seconds,
            lambda cost: f"{duration(cost)} of processor time",
        ),
        (
            "Accuracy against drift",
            "1 - CKA with the base's last features (logarithmic)",
            lambda row: None if row.drift is None else max(0.0, row.drift),
            lambda cost: f"drift {cost:.3g}",
        ),
    ]
    charts = []
    whole = [row for row in table.rows if row.is_whole]
    leader = _leader(table)
    for title, x_title, cost_of, tell in kinds:
        measured = [
            Measured(label_of(row, several), cost, row.mean, row.spread, tell(cost),
                     row.label == leader)
            for row in whole
            if (cost := cost_of(row)) is not None
        ]  # fmt: skip
        charts.append(scatter_chart(title, x_title, measured))
    return [chart for chart in charts if chart is not None]


def _leader(table: Table) -> str | None:
    """The method whose lead over every other one is more than chance, or None."""
    above: dict[str, set[str]] = {}
    for found in table.differences:
        if found.holm_p is not None and found.holm_p < SIGNIFICANT:
            better, worse = (found.first, found.second)[:: 1 if found.mean > 0 else -1]
            above.setdefault(better, set()).add(worse)
    others = {row.label for row in table.rows}
    return next((label for label, below in above.items() if below == others - {label}), None)


def _sources(table: Table) -> list[str]:
    return [row.published.source for row in table.rows if row.published is not None]
