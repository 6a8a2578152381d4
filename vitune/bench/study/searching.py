"""Stage 1: choosing which settings to try."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vitune.bench.study.cell_planner import Planner
from vitune.bench.study.cells import Cell, CellResult
from vitune.bench.study.choosing import Choice, choose
from vitune.bench.study.plan import Task, Variant


class Searcher(Protocol):
    """One variant's search on one task: an ask/tell interface, so that several can interleave.

    `ask` gives the cells to run next and nothing when the search is over; `tell` takes their
    results in the same order; `choice` is the chosen setting, None if none finished.
    """

    def ask(self) -> list[Cell]: ...

    def tell(self, results: Sequence[CellResult]) -> None: ...

    def choice(self) -> Choice | None: ...


def new_searcher(planner: Planner, variant: Variant, task: Task, folder: Path) -> Searcher:
    """The search that the study requests; its storage, if any, is in `folder`."""
    if planner.study.search is None:
        return GridSearch(planner, variant, task)
    from vitune.bench.study.optuna_search import OptunaSearch

    return OptunaSearch(planner, variant, task, folder)


class GridSearch:
    """Every setting of the grid at once; none if there is only one."""

    def __init__(self, planner: Planner, variant: Variant, task: Task) -> None:
        self.study, self.variant, self.task = planner.study, variant, task
        self.cells = planner.selection_cells(variant, task)
        self.results: list[CellResult] = []

    def ask(self) -> list[Cell]:
        """All cells, once."""
        cells, self.cells = self.cells, []
        return cells

    def tell(self, results: Sequence[CellResult]) -> None:
        """Keep them for `choice`."""
        self.results += results

    def choice(self) -> Choice | None:
        """The best setting of the grid."""
        return choose(self.study, self.variant, self.task, self.results)
