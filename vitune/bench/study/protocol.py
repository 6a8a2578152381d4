"""The honest protocol: choose on validation, refit on all training images, test once.

Stage 1 runs settings on training alone (all of a grid, or what a search proposes) and takes the
best validation accuracy of the last epoch (ties: the lower learning rate, then the lower weight
decay). Stage 2 refits on training and validation together with that setting, once per seed, and
keeps the last epoch. Stage 3 scores that network on the test split, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from vitune.bench.study.cell_planner import Planner as Planner
from vitune.bench.study.cells import Cell, CellResult, Status
from vitune.bench.study.choosing import Choice as Choice
from vitune.bench.study.choosing import choose as choose
from vitune.bench.study.execution import Executor, InProcess
from vitune.bench.study.journal import Journal
from vitune.bench.study.journal import read_choices as read_choices
from vitune.bench.study.journal import read_missing as read_missing
from vitune.bench.study.journal import read_remarks as read_remarks
from vitune.bench.study.journal import read_results as read_results
from vitune.bench.study.journal import read_study as read_study
from vitune.bench.study.journal import read_unfinished as read_unfinished
from vitune.bench.study.plan import Study, Task, Variant
from vitune.bench.study.searching import Searcher, new_searcher
from vitune.bench.study.store import Store
from vitune.errors import DataError, VituneError

T = TypeVar("T")
Pair = tuple[Variant, Task]


@dataclass(frozen=True)
class Outcome:
    """The result of a study.

    Args:
        results: of the final cells, in the study's order; one per variant, task and seed, including
            those that failed or could not be run.
        selection: results of stage 1.
        choices: one per variant and task that found a setting.
        num_reused: cells whose result already existed.
    """

    study: Study
    results: tuple[CellResult, ...]
    selection: tuple[CellResult, ...]
    choices: tuple[Choice, ...]
    num_reused: int

    @property
    def failures(self) -> tuple[CellResult, ...]:
        """Runs that failed with an error, in either stage; the study's next run retries them."""
        return tuple(r for r in (*self.selection, *self.results) if r.status == "failed")

    @property
    def diverged(self) -> tuple[CellResult, ...]:
        """Final runs whose loss became non-finite; in stage 1 that only concerns a setting."""
        return tuple(r for r in self.results if r.status == "diverged")


class Watcher:
    """Receives a study's progress and ignores it; the command line shows it with a subclass."""

    def planned(self, num_cells: int) -> None:
        """At most this many cells are to come."""

    def refused(self, task: Task, error: DataError) -> None:
        """The images of a task cannot be used; the study continues without it."""

    def started(self, cells: Sequence[Cell]) -> None:
        """Cells are handed out."""

    def finished(self, result: CellResult, reused: bool) -> None:
        """A cell has finished or failed."""

    def chosen(self, choice: Choice) -> None:
        """Stage 1 of a variant on a task is over."""


def run_study(
    study: Study,
    out: str | Path,
    *,
    executor: Executor | None = None,
    watcher: Watcher | None = None,
    fresh: bool = False,
) -> Outcome:
    """Run what is not yet in `out`, store every result there, and return them all.

    Args:
        out: the study's folder; one that was killed continues where it stopped.
        executor: where cells run; None is this process, one after the other.
        fresh: repeat runs made by other versions of the libraries or on another device.

    Raises:
        VituneError: `out` holds another study, the backbone cannot be used, or the data of no
            task can. A task whose data cannot be used does not stop the others, nor does
            a cell that fails: both are among the failures, and the next run retries them.
    """
    executor, watcher = executor or InProcess(), watcher or Watcher()
    executor.bench.forget_changed()
    planner = Planner(study, executor.bench, fresh=fresh)
    journal = Journal.begin(Path(out), study)
    return _Run(study, planner, executor, watcher, Store(out), journal).outcome()


@dataclass
class _Run:
    """One pass over a study, and the results so far."""

    study: Study
    planner: Planner
    executor: Executor
    watcher: Watcher
    store: Store
    journal: Journal
    results: list[CellResult] = field(default_factory=list)
    selection: list[CellResult] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    refused: dict[str, DataError] = field(default_factory=dict)
    num_reused: int = 0

    def outcome(self) -> Outcome:
        """Both stages of every task."""
        self.watcher.planned(self.planner.num_cells())
        for task in self.study.tasks:
            self._unless_refused(task, partial(self.planner.check, task))
        for tasks in self.executor.waves(self._usable(self.study.tasks)):
            self._run_tasks(tasks)
        if len(self.refused) == len(self.study.tasks):
            raise next(iter(self.refused.values()))
        for task in self.study.tasks:
            if task.name in self.refused:
                error = f"DataError: {self.refused[task.name]}"
                for variant in self.study.variants:
                    self._absent(variant, task, "failed", error)
        places = {(v.label, t.name): n for n, (v, t) in enumerate(self._pairs(self.study.tasks))}
        self.results.sort(key=lambda r: places[r.label, r.task])
        return Outcome(
            self.study,
            tuple(self.results),
            tuple(self.selection),
            tuple(self.choices),
            self.num_reused,
        )

    def _run_tasks(self, tasks: Sequence[Task]) -> None:
        searches = self._searched(tasks)
        final: list[Cell] = []
        for variant, task in self._pairs(self._usable(tasks)):
            choice = searches[variant.label, task.name].choice()
            if choice is None:
                self._unchosen(variant, task)
                continue
            cells = self._unless_refused(
                task, partial(self.planner.final_cells, variant, task, choice)
            )
            if cells is not None:
                self.choices.append(choice)
                self.watcher.chosen(choice)
                self.journal.chosen(choice)
                final += cells
        final = [cell for cell in final if cell.task not in self.refused]
        self.journal.planned(final)
        by_address = self._completed(final)
        self.results += [by_address[cell.address].for_cell(cell) for cell in final]

    def _searched(self, tasks: Sequence[Task]) -> dict[tuple[str, str], Searcher]:
        """Stage 1 of every variant on these tasks, with all searches in lockstep."""
        searches: dict[tuple[str, str], Searcher] = {}
        for variant, task in self._pairs(tasks):
            found = self._unless_refused(
                task, partial(new_searcher, self.planner, variant, task, self.store.path)
            )
            if found is not None:
                searches[variant.label, task.name] = found
        while True:
            asked = {}
            for variant, task in self._pairs(self._usable(tasks)):
                pair = (variant.label, task.name)
                cells = self._unless_refused(task, searches[pair].ask)
                if cells:
                    asked[pair] = cells
            if not asked:
                return searches
            by_address = self._completed([cell for cells in asked.values() for cell in cells])
            for pair, cells in asked.items():
                found_now = [by_address[cell.address].for_cell(cell) for cell in cells]
                self.selection += found_now
                searches[pair].tell(found_now)

    def _completed(self, cells: Sequence[Cell]) -> Mapping[str, CellResult]:
        """Results by address; identical cells run only once."""
        unique = {cell.address: cell for cell in cells}
        if not unique:
            return {}
        self.watcher.started(tuple(unique.values()))
        found: dict[str, CellResult] = {}
        for result, reused in self.executor.run(list(unique.values()), self.store):
            found[result.address] = result
            self.num_reused += reused
            self.watcher.finished(result, reused)
        lost = set(unique) - set(found)
        if lost:
            raise VituneError(f"executor: got no result for {len(lost)} cells, expected one each.")
        return found

    def _unless_refused(self, task: Task, act: Callable[[], T]) -> T | None:
        """The result of `act`; None if the task's data cannot be used, now or before."""
        if task.name in self.refused:
            return None
        try:
            return act()
        except DataError as error:
            self.refused[task.name] = error
            self.watcher.refused(task, error)
            return None

    def _usable(self, tasks: Sequence[Task]) -> list[Task]:
        return [task for task in tasks if task.name not in self.refused]

    def _pairs(self, tasks: Sequence[Task]) -> list[Pair]:
        return [(variant, task) for task in tasks for variant in self.study.variants]

    def _unchosen(self, variant: Variant, task: Task) -> None:
        """No setting of stage 1 finished: the method lost every run on the task."""
        own = [r for r in self.selection if (r.label, r.task) == (variant.label, task.name)]
        failed = [result for result in own if result.status == "failed"]
        error = (failed or own)[0].error if own else None
        status: Status = "failed" if failed else "diverged"
        self._absent(variant, task, status, f"no setting of stage 1 finished: {error}")

    def _absent(self, variant: Variant, task: Task, status: Status, error: str) -> None:
        results = self.planner.absent_results(variant, task, status, error)
        self.journal.absent(results)
        self.results += results
