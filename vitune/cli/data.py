"""vitune data: check your own images or a benchmark's folders, or write a tiny benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from vitune.cli import _completion
from vitune.cli._options import IMAGE_GROUPS, Verbs
from vitune.errors import VituneError

if TYPE_CHECKING:
    from vitune.data import Inspection

data = Verbs(help="Check images before training, or write a tiny fake benchmark.")

NAMES_SHOWN = 5


def add_to(app: typer.Typer) -> None:
    """Register the command and its subcommands."""
    app.add_typer(data, name="data")


@data.command("check")
def check(
    source: str = typer.Argument(
        ..., help="images, as for vitune train; with --suite the data root"
    ),
    suite: str = typer.Option(
        None,
        "--suite",
        help="check a benchmark: vtab1k, fgvc or fewshot",
        autocompletion=_completion.suites,
    ),
    groups: str = typer.Option(None, "--groups", help=IMAGE_GROUPS),
    strict: bool = typer.Option(False, "--strict", help="count notes as faults"),
    as_json: bool = typer.Option(False, "--json", help="print JSON with all file names"),
) -> None:
    """Check every image and label before training; change nothing.

    Counts and names faults, which training refuses or would learn wrongly: files that cannot be
    read, one image in two classes, splits that share images, classes with a single image. Notes do
    not stop training: files of a kind that is not read, classes spelled in several ways, images
    that are nearly black. With --groups, names groups that are in two splits. With
    --suite, says for each task what is there and how to get the rest.

    Exit code 0: no fault (a suite: every task complete). 2: faults, or nothing that can be read.
    """
    if suite is not None:
        if groups is not None:
            raise VituneError(
                "--groups: got it with --suite, expected only one of the two: a benchmark's splits "
                "are fixed. Leave one out."
            )
        sound = _check_suite(source, suite, as_json)
    else:
        sound = _check_images(source, groups, strict, as_json)
    if not sound:
        raise typer.Exit(2)


def _check_images(source: str, groups: str | None, strict: bool, as_json: bool) -> bool:
    """Print what is odd about the user's images; return whether they are fit to train on."""
    import json
    from dataclasses import asdict

    from vitune.cli._progress import Counting
    from vitune.data import inspect_images

    bar = Counting("reading images")
    try:
        found = inspect_images(source, groups=groups, on_progress=bar)
    finally:
        bar.close()
    sound = not (found.remarks if strict else found.num_faults)
    if as_json:
        remarks = [remark.as_dict(most=None) for remark in found.remarks]
        splits = [asdict(split) for split in found.splits]
        typer.echo(json.dumps({"fit_to_train": sound, "splits": splits, "remarks": remarks}))
    else:
        _print_inspection(found, strict)
    return sound


def _print_inspection(found: Inspection, strict: bool) -> None:
    from vitune.cli._progress import console
    from vitune.cli._tables import print_columns

    has_groups = any(split.num_groups for split in found.splits)
    print_columns(
        (
            "split",
            "images",
            *(["groups"] if has_groups else []),
            "classes",
            "smallest class",
            "largest class",
        ),
        [
            (
                split.name,
                f"{split.num_images:,}",
                *([f"{split.num_groups or 0:,}"] if has_groups else []),
                f"{split.num_classes:,}",
                f"{split.fewest[0]} {split.fewest[1]:,}",
                f"{split.most[0]} {split.most[1]:,}",
            )
            for split in found.splits
        ],
    )
    console.print()
    for remark in found.remarks:
        colour = "red" if remark.is_fault or strict else "yellow"
        word = "fault" if remark.is_fault else "note "
        console.print(f"{word} ", style=colour, end="")
        console.print(f"{remark.text}:", soft_wrap=True)
        for name in _first(remark.names):
            console.print(f"        {name}", soft_wrap=True)
    notes = len(found.remarks) - found.num_faults
    total = f"{_some(found.num_faults, 'fault')}, {_some(notes, 'note')}"
    console.print("nothing odd" if not found.remarks else f"{total}; --json names all files")


def _first(names: tuple[str, ...]) -> Iterable[str]:
    yield from names[:NAMES_SHOWN]
    if len(names) > NAMES_SHOWN:
        yield f"and {len(names) - NAMES_SHOWN:,} more"


def _some(number: int, what: str) -> str:
    from vitune.report import counted

    return counted(number, what) if number else f"no {what}s"


def _check_suite(root: str, suite: str, as_json: bool) -> bool:
    """Print the state of a benchmark's tasks; return whether all are complete."""
    import json
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from vitune.bench.suites.checking import check_suite
    from vitune.cli._progress import console

    found = check_suite(root, suite)
    complete = all(task.status == "complete" for task in found)
    if as_json:
        typer.echo(json.dumps({"complete": complete, "tasks": [asdict(task) for task in found]}))
        return complete
    table = Table(box=None, pad_edge=False)
    for title in ("task", "status", "images", "classes"):
        table.add_column(title, justify="left" if title in ("task", "status") else "right")
    colours = {"complete": "green", "odd": "yellow", "missing": "red"}
    for task in found:
        images = ", ".join(f"{name} {count:,}" for name, count in task.counts.items())
        status = Text(task.status, style=colours.get(task.status, "white"))
        table.add_row(task.task, status, images or "-", str(task.num_classes or "-"))
    console.print(table)
    for task in found:
        for problem in (*task.problems, *([task.remedy] if task.remedy else [])):
            console.print(f"{task.task}: {problem}")
    return complete


@data.command("fake")
def fake(
    root: str = typer.Argument(..., help="new folder"),
    suite: str = typer.Option(
        "vtab1k",
        "--suite",
        help="vtab1k, fgvc or fewshot",
        autocompletion=_completion.suites,
    ),
) -> None:
    """Write a tiny but complete copy of a benchmark, to try things out."""
    from vitune.bench.suites.tiny_copies import write_fake
    from vitune.cli._progress import console

    tasks = write_fake(root, suite)
    console.print(f"{len(tasks)} tasks of {suite}: {root}", soft_wrap=True)
