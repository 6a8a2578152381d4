"""report.html: what a run trained, how well it does, and where it came from."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitune.report.calibration import Reliability, reliability
from vitune.report.closing import closing_lines
from vitune.report.confusion import Confusion, most_confused, taken_for
from vitune.report.curves import curve_charts
from vitune.report.evaluations import ClassScore, Evaluation, Mistake
from vitune.report.exit_results import ExitsView, exits_view
from vitune.report.headline import headline
from vitune.report.heat_map import HeatMap, heat_map
from vitune.report.parameters import parameter_picture, trained_parts
from vitune.report.rendering import data_uri, write_page
from vitune.report.results import RunResults, read_run
from vitune.report.spectrum import figure_table, map_table

MOST_MISTAKES = 48


@dataclass(frozen=True)
class EvaluationView:
    """An evaluation with its charts; `key` makes its anchors unique."""

    key: str
    evaluation: Evaluation
    heat_map: HeatMap | None
    most_confused: list[Confusion]
    class_scores: list[ClassScore]
    taken_for: dict[str, Confusion]
    reliability: Reliability | None
    mistakes: list[Mistake]
    exits: ExitsView | None


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write one self-contained HTML file about a run and return its path.

    Args:
        run_dir: a run folder; the result files it holds are shown, missing ones left out.
        out: the file to write; `report.html` in the run folder by default.

    Raises:
        VituneError: no such run, a damaged result file, or `out` is a folder.
    """
    results = read_run(run_dir)
    target = results.folder / "report.html" if out is None else Path(out)
    return write_page(target, "report.html", _context(results))


def _context(results: RunResults) -> dict[str, Any]:
    summary = results.summary
    return {
        "run": results,
        "summary": summary,
        "closing": list(closing_lines(summary)) if summary else [],
        "config": results.config,
        "headline": headline(results),
        "curves": curve_charts(results.epochs, summary.reported.epoch if summary else None),
        "picture": parameter_picture(summary) if summary else None,
        "model_parts": trained_parts(summary) if summary else [],
        "views": [_view(f"e{index}", found) for index, found in enumerate(results.evaluations)],
        "figures": figure_table(results.spectrum),
        "maps": map_table(results.spectrum),
        "plots": [(plot, data_uri(plot.content, plot.kind)) for plot in results.plots],
        "commands": _commands(results),
    }


def _view(key: str, evaluation: Evaluation) -> EvaluationView:
    """One evaluation with its charts: weakest classes first, most confident mistakes first."""
    weakest = sorted(
        evaluation.per_class,
        key=lambda score: (score.f1 is None, score.f1 or 0.0, -score.num_images),
    )
    surest = sorted(evaluation.mistakes, key=lambda mistake: -(mistake.confidence or 0.0))
    return EvaluationView(
        key=key,
        evaluation=evaluation,
        heat_map=heat_map(evaluation),
        most_confused=most_confused(evaluation),
        class_scores=weakest,
        taken_for=taken_for(evaluation),
        reliability=reliability(evaluation),
        mistakes=surest[:MOST_MISTAKES],
        exits=exits_view(evaluation.exits, evaluation.num_images),
    )


def _commands(results: RunResults) -> list[tuple[str, str]]:
    """The next commands, each with what it does."""
    run = shlex.quote(str(results.folder))
    commands = [
        ("Label new images", f"vitune predict {run} new_images/ --top-k 3 --out predictions.csv"),
        ("Score on labelled images", f"vitune evaluate {run} --data photos_test/"),
    ]
    if results.summary is None or results.summary.mergeable is not False:
        commands.append(("Fold into the backbone", f"vitune merge {run} --out merged/"))
    return [*commands, ("Look inside the run", f"vitune info {run}")]
