"""The progress of a study, and its table, for compare and bench."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from vitune.bench.study.protocol import Choice, Outcome, Watcher
from vitune.cli._progress import Counting, console, percent
from vitune.cli._tables import print_columns
from vitune.errors import InterruptError
from vitune.files import check_folder

if TYPE_CHECKING:
    from vitune.bench.study.cells import Cell, CellResult
    from vitune.bench.study.execution import Executor
    from vitune.bench.study.plan import Task
    from vitune.bench.tables.study_table import Table
    from vitune.bench.tables.table_formats import Grid
    from vitune.errors import DataError

WIDEST = 16
"""Characters per table column; longer names are wrapped."""


class StudyProgress(Watcher):
    """A bar over cells on a terminal, one line per cell in a log; use it as a context.

    Args:
        out: the study's folder.

    Raises:
        InterruptError: on Ctrl-C, with what is kept and how to go on.
    """

    def __init__(self, out: str) -> None:
        self.bar, self.total, self.done = Counting("runs"), 0, 0
        self.out, self.kept = out, 0
        self.told_of_network = False

    def __enter__(self) -> StudyProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bar.close()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            kept = f"{_runs(self.kept)} {'is' if self.kept == 1 else 'are'} kept in {self.out}"
            raise InterruptError(f"stopped. {kept}. Continue with the same command.") from None

    def planned(self, num_cells: int) -> None:
        self.total = self.done + num_cells  # a second study goes on counting
        self.bar(self.done, self.total)

    def refused(self, task: Task, error: DataError) -> None:
        console.print(Text.assemble(("left out:", "yellow"), f" {task.name}"), soft_wrap=True)
        console.print(str(error), soft_wrap=True)

    def started(self, cells: Sequence[Cell]) -> None:
        notice = next(filter(None, map(_demonstration, cells)), "")
        if notice and not self.told_of_network:
            self.told_of_network = True
            console.print(notice, style="yellow", soft_wrap=True)
        self.bar(self.done, self.total)

    def finished(self, result: CellResult, reused: bool) -> None:
        self.done += 1
        self.kept += result.is_settled
        self.bar(min(self.done, self.total), self.total)
        if not console.is_terminal or result.status != "done":
            how = "kept" if reused else f"{result.seconds or 0:.0f} s"
            accuracy = result.val if result.scores is None else result.scores.top1
            score = result.error or f"{result.stage} {percent(accuracy)}"
            console.print(
                f"[{self.done}/{self.total}] {result.label} {result.task} seed {result.seed} "
                f"{_settings(result.setting)}: {score} ({how})",
                soft_wrap=True,
            )

    def chosen(self, choice: Choice) -> None:
        if choice.setting and not console.is_terminal:
            console.print(
                f"chosen on validation: {choice.label} on {choice.task}: "
                f"{_settings(choice.setting)}",
                soft_wrap=True,
            )


def _demonstration(cell: Cell) -> str:
    """A notice that a person's own images meet the bundled demonstration network, or empty."""
    from vitune.backbones import BUNDLED, OWN_IMAGES, notice_of

    config = cell.config
    is_bundled = config.backbone == BUNDLED and config.checkpoint is None
    if not is_bundled or config.data.startswith(OWN_IMAGES):
        return ""
    return notice_of(BUNDLED, was_named=False)


def check_study_folder(out: str, *, force: bool) -> None:
    """Refuse a folder with the user's files; a folder that already holds a study may continue.

    Raises:
        OutputError: the folder holds something else.
    """
    from vitune.bench.study.journal import JOURNAL, OLD_MANIFEST

    # A study.yaml alone is no proof: it may be the file that the user wrote for 'bench study'.
    check_folder(out, marks=(JOURNAL, OLD_MANIFEST, "cells", "lists"), force=force)


def new_executor(jobs: int, ray: str | None = None, gpus_per_run: float = 0.0) -> Executor:
    """Where runs go: this process, several on this machine, or a Ray cluster."""
    from vitune.bench.study.execution import InProcess, Processes

    if ray is not None:
        from vitune.bench.study.on_ray import OnRay

        return OnRay(ray, gpus_per_cell=gpus_per_run)
    return InProcess() if jobs == 1 else Processes(jobs)


def end_with(outcomes: Sequence[Outcome]) -> None:
    """Say how many runs have no accuracy, and exit with 1 if there are any.

    Raises:
        typer.Exit: some runs failed, or diverged in the final stage.
    """
    failed = sum(len(outcome.failures) for outcome in outcomes)
    diverged = sum(len(outcome.diverged) for outcome in outcomes)
    if failed:
        console.print(f"{_runs(failed)} failed; run the same command to try again", style="yellow")
    if diverged:
        console.print(f"{_runs(diverged)} diverged and will not be tried again", style="yellow")
    if failed or diverged:
        raise typer.Exit(1)


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


def print_table(table: Table) -> None:
    """Print the table and its notes; transposed, one task per line, if it is too wide."""
    from vitune.bench.tables.sureness import verdict
    from vitune.bench.tables.table_formats import as_grid

    grid = as_grid(table)
    parts: list[list[tuple[str, ...]]] = [[grid.headings, *grid.lines]]
    if sum(map(_width, zip(*parts[0], strict=True))) > console.width:
        parts = [
            list(zip(grid.headings, *lines, strict=True)) for lines in _blocks(grid, console.width)
        ]
    for headings, *lines in parts:
        print_columns(headings, lines, widest=WIDEST, to=console)
    for note in (verdict(table), *grid.notes):
        if note:
            console.print(note, style="dim")


def _blocks(grid: Grid, width: int) -> Iterator[list[tuple[str, ...]]]:
    """The lines of a transposed table, in blocks as wide as fit beside the headings."""
    block: list[tuple[str, ...]] = []
    for line in grid.lines:
        if block and sum(map(_width, [grid.headings, *block, line])) > width:
            yield block
            block = []
        block.append(line)
    yield block


def _width(cells: Sequence[str]) -> int:
    """Characters of a column, with the gap to the next."""
    return min(WIDEST, max(map(len, cells))) + 2


def _settings(setting: object) -> str:
    pairs = dict(setting) if isinstance(setting, dict) else {}
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in pairs.items()
    )
