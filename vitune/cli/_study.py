"""How a study goes on, and its table, for compare and bench."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitune.bench.protocol import Choice, Watcher
from vitune.cli._progress import Counting, console, count, percent

if TYPE_CHECKING:
    from vitune.bench.cells import Cell, CellResult
    from vitune.bench.execution import Executor
    from vitune.bench.table import Table, TableRow


class StudyProgress(Watcher):
    """A bar over cells on a terminal, a line a cell in a log."""

    def __init__(self) -> None:
        self.bar, self.total, self.done = Counting("runs"), 0, 0

    def planned(self, num_cells: int) -> None:
        self.total = num_cells
        self.bar(0, num_cells)

    def started(self, cells: Sequence[Cell]) -> None:
        self.bar(self.done, self.total)

    def finished(self, result: CellResult, reused: bool) -> None:
        self.done += 1
        self.bar(min(self.done, self.total), self.total)
        if not console.is_terminal or result.status != "done":
            how = "kept" if reused else f"{result.seconds or 0:.0f} s"
            accuracy = result.val if result.scores is None else result.scores.top1
            score = result.error or f"{result.stage} {percent(accuracy)}"
            console.print(
                f"[{self.done}/{self.total}] {result.label} {result.task} seed {result.seed} "
                f"{_settings(result.setting)}: {score} ({how})",
                markup=False,
                soft_wrap=True,
            )

    def chosen(self, choice: Choice) -> None:
        if choice.setting and not console.is_terminal:
            console.print(
                f"chosen on validation: {choice.label} on {choice.task}: "
                f"{_settings(choice.setting)}",
                markup=False,
                soft_wrap=True,
            )

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()


def new_executor(jobs: int, ray: str | None = None, gpus_per_run: float = 0.0) -> Executor:
    """Where runs go: this process, several on this machine, or a Ray cluster."""
    from vitune.bench.execution import InProcess, Processes

    if ray is not None:
        from vitune.bench.on_ray import OnRay

        return OnRay(ray, gpus_per_cell=gpus_per_run)
    return InProcess() if jobs == 1 else Processes(jobs)


def print_table(table: Table) -> None:
    """Accuracy a task with its spread, parameters, seconds, peak memory; then what to know."""
    from rich.table import Table as Drawn

    several = len(table.tasks) > 1
    drawn = Drawn(box=None, pad_edge=False)
    drawn.add_column("method", overflow="fold")
    if not several:
        drawn.add_column("accuracy", justify="right")
    else:
        for task in (*table.tasks, "mean"):
            drawn.add_column(task, justify="right", overflow="fold")
    for title in ("parameters", "seconds", "peak MiB"):
        drawn.add_column(title, justify="right")
    for row in table.rows:
        drawn.add_row(*_cells(row, table, several))
    console.print(drawn)
    for note in table.notes:
        console.print(note, style="dim")


def _cells(row: TableRow, table: Table, several: bool) -> list[str]:
    from vitune.bench.formats import figure_text

    cells = [row.label, *(figure_text(row.figures.get(task)) for task in table.tasks)]
    if several:
        cells.append(percent(row.mean_tasks))
    cells.append("-" if row.num_parameters is None else count(row.num_parameters))
    cells.append("-" if row.seconds is None else f"{row.seconds:.0f}")
    cells.append("-" if row.peak_mib is None else f"{row.peak_mib:,.0f}")
    return cells


def _settings(setting: object) -> str:
    pairs = dict(setting) if isinstance(setting, dict) else {}
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in pairs.items()
    )
