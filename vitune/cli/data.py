"""vitune data: look at a benchmark's folders, or write a tiny copy of one."""

from __future__ import annotations

import typer

data = typer.Typer(help="Check a benchmark's data, or write a tiny fake copy.")

SUITE = typer.Option("vtab1k", "--suite", help="vtab1k, fgvc or fewshot")


def add_to(app: typer.Typer) -> None:
    """Register the verb and its own verbs."""
    app.add_typer(data, name="data")


@data.command("check")
def check(root: str = typer.Argument(..., help="folder of the tasks"), suite: str = SUITE) -> None:
    """Say per task what is there, what is missing or odd, and how to get it."""
    from rich.table import Table

    from vitune.bench.checking import check_suite
    from vitune.cli._progress import console

    found = check_suite(root, suite)
    table = Table(box=None, pad_edge=False)
    for title in ("task", "status", "images", "classes"):
        table.add_column(title, justify="left" if title in ("task", "status") else "right")
    colours = {"complete": "green", "odd": "yellow", "missing": "red"}
    for task in found:
        images = ", ".join(f"{name} {count:,}" for name, count in task.counts.items())
        status = f"[{colours.get(task.status, 'white')}]{task.status}[/]"
        table.add_row(task.task, status, images or "-", str(task.num_classes or "-"))
    console.print(table)
    for task in found:
        for problem in (*task.problems, *([task.remedy] if task.remedy else [])):
            console.print(f"{task.task}: {problem}", markup=False)


@data.command("fake")
def fake(root: str = typer.Argument(..., help="new folder"), suite: str = SUITE) -> None:
    """Write a tiny complete copy of a benchmark, for tests and trying things out."""
    from vitune.bench.fake import write_fake
    from vitune.cli._progress import console

    tasks = write_fake(root, suite)
    console.print(f"{len(tasks)} tasks of {suite}: {root}", soft_wrap=True)
