"""The honest protocol: choose on validation, refit on all training images, test once.

Stage 1 runs settings on training alone (all of a grid, or what a search proposes) and takes the
best validation accuracy of the last epoch (ties: the lower learning rate, then the lower weight
decay). Stage 2 refits on
training and validation together with that setting, once a seed, and keeps the last epoch. Stage 3
scores that network on the test split, once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitune.bench.cells import Cell, CellResult
from vitune.bench.execution import Executor, InProcess
from vitune.bench.searching import Choice as Choice
from vitune.bench.searching import choose as choose
from vitune.bench.searching import needs_selection, new_searcher, num_selection_cells
from vitune.bench.store import Store
from vitune.bench.study import Setting, Study, Task, Variant
from vitune.bench.workbench import Workbench
from vitune.data import open_source
from vitune.errors import DataError, VituneError
from vitune.files import write_atomic

STUDY, MANIFEST = "study.yaml", "study.json"


@dataclass(frozen=True)
class Outcome:
    """What a study brought.

    Args:
        results: of the final cells, in the study's order, failed ones included.
        selection: results of stage 1.
        choices: one a variant and task.
        num_reused: cells whose result was there before.
    """

    study: Study
    results: tuple[CellResult, ...]
    selection: tuple[CellResult, ...]
    choices: tuple[Choice, ...]
    num_reused: int

    @property
    def failures(self) -> tuple[CellResult, ...]:
        """Cells without a score."""
        return tuple(r for r in (*self.selection, *self.results) if r.status != "done")


class Watcher:
    """Is told how a study goes on; ignores it. The command line draws with a subclass."""

    def planned(self, num_cells: int) -> None:
        """So many cells at most are to come."""

    def started(self, cells: Sequence[Cell]) -> None:
        """These cells are handed out."""

    def finished(self, result: CellResult, reused: bool) -> None:
        """A cell is settled or has failed."""

    def chosen(self, choice: Choice) -> None:
        """Stage 1 of a variant on a task is over."""


@dataclass
class _Book:
    """What has come back so far."""

    results: list[CellResult] = field(default_factory=list)
    selection: list[CellResult] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    num_reused: int = 0


def run_study(
    study: Study,
    out: str | Path,
    *,
    executor: Executor | None = None,
    watcher: Watcher | None = None,
) -> Outcome:
    """Run what is not yet in `out`, keep every result there, and return them all.

    Args:
        out: the study's folder; one that was killed is continued where it was.
        executor: where cells run; None is this process, one after the other.

    Raises:
        VituneError: data or backbone that cannot be used. A cell that fails does not stop the
            study: it is among the failures, and the next run tries it again.
    """
    executor, watcher, store = executor or InProcess(), watcher or Watcher(), Store(out)
    planner = Planner(study, executor.bench)
    store.path.mkdir(parents=True, exist_ok=True)
    write_atomic(store.path / STUDY, _yaml(study))
    watcher.planned(planner.num_cells())
    book = _Book()
    for tasks in executor.waves(study.tasks):
        pairs = [(variant, task) for task in tasks for variant in study.variants]
        searches = {(v.label, t.name): new_searcher(planner, v, t, store.path) for v, t in pairs}
        while asked := {pair: cells for pair, s in searches.items() if (cells := s.ask())}:
            by_address = _run(
                [cell for cells in asked.values() for cell in cells],
                executor, store, watcher, book,
            )  # fmt: skip
            for pair, cells in asked.items():
                found = [by_address[cell.address].for_cell(cell) for cell in cells]
                book.selection += found
                searches[pair].tell(found)
        final: list[Cell] = []
        for variant, task in pairs:
            choice = searches[variant.label, task.name].choice()
            if choice is not None:
                book.choices.append(choice)
                watcher.chosen(choice)
                final += planner.final_cells(variant, task, choice)
        by_address = _run(final, executor, store, watcher, book)
        book.results += [by_address[cell.address].for_cell(cell) for cell in final]
        _record(store, book)
    return Outcome(
        study, tuple(book.results), tuple(book.selection), tuple(book.choices), book.num_reused
    )


class Planner:
    """Turns a study into cells; decodes training and validation images to know their hashes."""

    def __init__(self, study: Study, bench: Workbench) -> None:
        self.study, self.bench = study, bench

    def num_cells(self) -> int:
        """Cells of both stages if every variant finds a setting on every task."""
        study = self.study
        searched = sum(num_selection_cells(study, v) for v in study.variants)
        return len(study.tasks) * (searched + len(study.variants) * len(study.seeds))

    def scored_on(self, task: Task) -> str:
        """ "test" or "val": which split the task's figures are of.

        Raises:
            DataError: the test split is asked for and the source has none.
        """
        has_test = "test" in open_source(task.data).splits
        if self.study.report_on == "test" and not has_test:
            raise DataError(
                f"task {task.name!r}: got {task.data!r} without a test split, expected one. "
                "Report on validation instead."
            )
        return "test" if has_test and self.study.report_on != "val" else "val"

    def selection_cells(self, variant: Variant, task: Task) -> list[Cell]:
        """Stage 1: every setting and selection seed; none where there is one setting alone."""
        if not needs_selection(self.study, variant):
            return []
        return self.cells_of(variant, task, self.study.grid_of(variant))

    def cells_of(self, variant: Variant, task: Task, settings: Iterable[Setting]) -> list[Cell]:
        """Cells of stage 1 for some settings, each with every selection seed."""
        return [
            self._cell(variant, task, setting, seed, "select", "val")
            for setting in settings
            for seed in self.study.selection_seeds
        ]

    def final_cells(self, variant: Variant, task: Task, choice: Choice) -> list[Cell]:
        """Stages 2 and 3: the chosen setting with every seed."""
        scored_on = self.scored_on(task)
        return [
            self._cell(variant, task, choice.setting, seed, "final", scored_on, choice.val)
            for seed in self.study.seeds
        ]

    def first_cell(self, variant: Variant, task: Task) -> Cell:
        """A cell of stage 1 with the grid's first setting, for measuring what cells cost."""
        setting = self.study.grid_of(variant)[0]
        return self._cell(variant, task, setting, self.study.selection_seeds[0], "select", "val")

    def _cell(
        self,
        variant: Variant,
        task: Task,
        setting: Setting,
        seed: int,
        stage: Any,
        scored_on: Any,
        val: float | None = None,
    ) -> Cell:
        study, refit = self.study, scored_on == "test"
        config = study.config(variant, task, setting, seed=seed, refit=refit)
        data = self.bench.task(config, study.split_seed)
        recipe = study.recipe_of(variant, task) if stage == "final" else {}
        epochs = config.epochs + recipe.get("cooldown_epochs", 0)
        return Cell(
            stage=stage,
            label=variant.label,
            task=task.name,
            group=task.group,
            config=config.model_copy(update={"epochs": epochs}),
            setting=dict(setting),
            scored_on=scored_on,
            split_hashes=data.hashes(refit=refit, scored_on=scored_on),
            fingerprint=self.bench.facts(config).fingerprint,
            split_seed=study.split_seed,
            val=val,
            retention=study.retention and stage == "final",
            recipe=recipe,
        )


def _run(
    cells: Sequence[Cell], executor: Executor, store: Store, watcher: Watcher, book: _Book
) -> Mapping[str, CellResult]:
    """Results by address; cells that are one and the same run once."""
    unique = {cell.address: cell for cell in cells}
    watcher.started(tuple(unique.values()))
    found: dict[str, CellResult] = {}
    for result, reused in executor.run(list(unique.values()), store):
        found[result.address] = result
        book.num_reused += reused
        watcher.finished(result, reused)
    lost = set(unique) - set(found)
    if lost:
        raise VituneError(f"executor: got no result for {len(lost)} cells, expected one each.")
    return found


def read_missing(out: str | Path) -> tuple[str, ...]:
    """The tasks that the study in a folder had to leave out."""
    path = Path(out) / STUDY
    return Study.read(path).missing if path.is_file() else ()


def read_results(out: str | Path) -> list[CellResult]:
    """The final results of the study in a folder, as far as it has come, under its own names.

    Raises:
        VituneError: the folder holds no study.
    """
    store = Store(out)
    found = [(store.read(e["address"]), e) for e in _manifest(out, "results")]
    return [
        replace(result, label=e["label"], task=e["task"], group=e["group"], val=e["val"])
        for result, e in found
        if result is not None
    ]


def read_choices(out: str | Path) -> list[Choice]:
    """What stage 1 of the study in a folder chose and tried, as far as it has come.

    Raises:
        VituneError: the folder holds no study.
    """
    return [
        Choice(**{**e, "tried": tuple((dict(setting), val) for setting, val in e["tried"])})
        for e in _manifest(out, "choices")
    ]


def _manifest(out: str | Path, part: str) -> list[dict[str, Any]]:
    path = Path(out) / MANIFEST
    if not path.is_file():
        raise VituneError(
            f"study: got {str(out)!r} without {MANIFEST}, expected a folder that "
            "'vitune bench run --out' wrote."
        )
    try:
        return list(json.loads(path.read_text())[part])
    except (ValueError, KeyError, TypeError) as error:
        raise VituneError(f"{path}: got a damaged file ({error}), run the study again.") from None


def _record(store: Store, book: _Book) -> None:
    """Which addresses make up the study so far, and what was chosen, for tables made later."""
    finals = [
        {"label": r.label, "task": r.task, "group": r.group, "val": r.val, "address": r.address}
        for r in book.results
    ]
    choices = [vars(choice) for choice in book.choices]
    text = json.dumps({"results": finals, "choices": choices}, indent=1)
    try:
        write_atomic(store.path / MANIFEST, text + "\n")
    except OSError:  # a full disk must not end the study; the next task tries again
        return


def _yaml(study: Study) -> str:
    import yaml

    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)
