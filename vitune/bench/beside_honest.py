"""A published recipe under both protocols, so that its figure is never shown alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitune.bench.study.execution import Executor
from vitune.bench.study.plan import Study
from vitune.bench.study.protocol import Outcome, Watcher, run_study
from vitune.bench.tables.study_table import Table, make_table
from vitune.errors import VituneError


@dataclass(frozen=True)
class BothProtocols:
    """The outcomes and one table with a row for each figure."""

    honest: Outcome
    published: Outcome
    table: Table


def run_both(
    honest: Study,
    published: Study,
    out: str | Path,
    *,
    executor: Executor | None = None,
    watcher: Watcher | None = None,
    fresh: bool = False,
) -> BothProtocols:
    """Run both studies, each in a subfolder of `out` named after its protocol.

    Args:
        fresh: repeat runs made by other versions or on another device.

    Raises:
        VituneError: studies with other protocols, or an error of `run_study`.
    """
    for study, expected in ((honest, "honest"), (published, "as-published")):
        if study.protocol != expected:
            raise VituneError(
                f"study {study.name!r}: got protocol {study.protocol!r}, expected {expected!r}."
            )
    outcomes = [
        run_study(
            study, Path(out) / study.protocol, executor=executor, watcher=watcher, fresh=fresh
        )
        for study in (honest, published)
    ]
    results = [result for outcome in outcomes for result in outcome.results]
    table = make_table(results, split_columns=True, missing=honest.missing)
    return BothProtocols(outcomes[0], outcomes[1], with_remarks(table, published.remarks))


def with_remarks(table: Table, remarks: Sequence[str]) -> Table:
    """The table with further notes below it, each once."""
    return replace(table, notes=(*table.notes, *dict.fromkeys(remarks)))
