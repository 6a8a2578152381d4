"""`vitune compare`: several methods on one data source, each at its default settings or a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitune.bench.launching import seed_list
from vitune.bench.study.choosing import Choice
from vitune.bench.study.execution import Executor
from vitune.bench.study.plan import Study, grid_of
from vitune.bench.study.protocol import Outcome, Watcher, run_study
from vitune.bench.tables.mixed_model import Difference
from vitune.bench.tables.study_page import epochs_text
from vitune.bench.tables.study_table import Table, TableRow, make_table
from vitune.bench.tables.sureness import explanation, verdict
from vitune.bench.tables.table_formats import split_text
from vitune.data import spec_name
from vitune.errors import VituneError
from vitune.methods import get_method
from vitune.report import write_comparison


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison: the outcome, its table and its page."""

    outcome: Outcome
    table: Table
    page: Path


def comparison_study(
    data: str | Path,
    methods: Sequence[str],
    *,
    backbone: str = "vitune/vit_micro_patch4_32",
    checkpoint: str | None = None,
    image_size: int | None = None,
    epochs: int = 20,
    lrs: Sequence[float] = (),
    seeds: int | Sequence[int] = 3,
    method_args: Mapping[str, Mapping[str, Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
    allow_overlap: bool = False,
) -> Study:
    """The study that `vitune compare` runs.

    Args:
        methods: names; a label is a method's name.
        lrs: learning rates to choose from on validation; empty takes each method's default.
        seeds: how many (0, 1, ...), or which.
        method_args: arguments by method name.
        settings: further training settings for every method.
        keep, allow_overlap: as `Study` takes them.

    Raises:
        VituneError: no method, a method twice, arguments for a method that is not compared, or an
            error of the study.
    """
    data, methods, given = str(data), [str(name) for name in methods], dict(method_args or {})
    rates = [float(lr) for lr in lrs]
    stray = sorted(set(given) - set(methods))
    if stray:
        raise VituneError(
            f"--method-arg: got arguments for {stray[0]!r}, expected one of the compared methods "
            f"({', '.join(methods)})."
        )
    if not methods:
        raise VituneError("--methods: got none, expected at least one name.")
    return Study.make(
        {
            "name": "comparison",
            "variants": [
                {"label": name, "method": name, "method_args": dict(given.get(name, {}))}
                for name in methods
            ],
            "tasks": [{"name": spec_name(data), "data": data}],
            "backbone": backbone,
            "checkpoint": checkpoint,
            "image_size": image_size,
            "epochs": epochs,
            "settings": dict(settings or {}),
            "grid": grid_of(lr=rates) if rates else ({},),
            "seeds": seed_list(seeds),
            "keep": tuple(keep),
            "allow_overlap": allow_overlap,
        }
    )


def compare(
    study: Study,
    out: str | Path,
    *,
    executor: Executor | None = None,
    watcher: Watcher | None = None,
    fresh: bool = False,
) -> Comparison:
    """Run the study and write `compare.html` into its folder.

    Args:
        fresh: repeat runs made by other versions or on another device.

    Raises:
        VituneError: an error of `run_study`, or no method finished.
    """
    outcome = run_study(study, out, executor=executor, watcher=watcher, fresh=fresh)
    if all(result.status != "done" for result in outcome.results):
        error = outcome.results[0].error
        raise VituneError(f"compare: got no finished run. The first error: {error}")
    table = make_table(outcome.results)
    page = write_comparison(
        [_entry(row, study, outcome.choices) for row in table.rows],
        Path(out) / "compare.html",
        heading="Methods compared",
        note=_note(study, table),
        differences=[_tested(found) for found in table.differences],
        explanation=explanation(table.differences),
    )
    return Comparison(outcome, table, page)


def _entry(row: TableRow, study: Study, choices: Sequence[Choice]) -> dict[str, Any]:
    lr, lr_from = _learning_rate(row, study, choices)
    return {
        "method": row.label,
        "title": get_method(row.method).title if row.label == row.method else row.label,
        "top1": [
            value
            for figures in (row.figures, row.survivors)
            for figure in figures.values()
            for value in figure.values
        ],
        "num_lost": sum(lost.num_ended for lost in row.lost.values()),
        "lr": lr,
        "lr_from": lr_from,
        "num_trainable_without_head": row.num_parameters,
        "seconds": row.seconds,
        "cpu_seconds": row.cpu_seconds,
        "peak_mib": row.peak_mib,
    }


def _learning_rate(
    row: TableRow, study: Study, choices: Sequence[Choice]
) -> tuple[float | None, str]:
    """The learning rate of a method, and where it comes from; None for one without steps."""
    choice = next((found for found in choices if found.label == row.label), None)
    variant = next(found for found in study.variants if found.label == row.label)
    setting = study.grid_of(variant)[0] if choice is None else choice.setting
    rate = study.config(variant, study.tasks[0], setting, seed=0, refit=False).lr
    if rate is None:
        return None, ""
    if choice is not None and "lr" in choice.setting:
        tried = len({setting.get("lr") for setting, _ in choice.tried})
        return rate, f"best of {tried} on validation" if tried > 1 else "given"
    given = {**study.settings, **study.tasks[0].settings, **variant.settings}
    return rate, "given" if {"lr", "lr_factor"} & set(given) else "default"


def _tested(found: Difference) -> dict[str, Any]:
    """A difference of the table in the page's format."""
    here = found.on_these
    return {
        "first": found.first,
        "second": found.second,
        "mean": found.mean,
        "low": None if here is None else here.low,
        "high": None if here is None else here.high,
        "p_value": found.holm_p,
    }


def _note(study: Study, table: Table) -> str:
    """Data, backbone and split in one or two sentences, and the table's warnings."""
    task = study.tasks[0]
    what = f"{task.data} on {study.backbone}, {epochs_text(study)}."
    parts = [f"{what} Accuracy on {split_text(table)}. Speed: {table.speed}."]
    return " ".join(filter(None, [*parts, verdict(table), *table.notes]))
