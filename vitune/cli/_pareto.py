"""`vitune bench pareto`: its options as a record, and what it prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from vitune.cli import _completion, _study_options
from vitune.cli._options import DATA, NAMES, NUMBERS, STUDY
from vitune.cli._words import whole_numbers, words

DEFAULT_METHODS = ("rlrr", "lora", "full")
DEFAULT_SPEEDS = ("exact", "fast", "fastest")


@dataclass(frozen=True)
class Asked:
    """What is trained, on which images, how long."""

    suite: Annotated[
        list[str],
        typer.Option(
            "--suite",
            metavar=NAMES,
            help="suites or data sets, e.g. demo,photos/",
            autocompletion=_completion.several_suites,
            rich_help_panel=DATA,
        ),
    ]
    data_root: Annotated[
        str | None,
        typer.Option(
            "--data-root", help="folder that holds the suites' tasks", rich_help_panel=DATA
        ),
    ] = None
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", metavar=NAMES, help="only these tasks", rich_help_panel=DATA),
    ] = None
    methods: Annotated[
        list[str] | None,
        _study_options.methods_option(f"default {','.join(DEFAULT_METHODS)}"),
    ] = None
    backbone: Annotated[
        str | None, _study_options.backbone_option("; default: the bundled one")
    ] = None
    checkpoint: Annotated[str | None, _study_options.CHECKPOINT] = None
    speeds: Annotated[
        list[str] | None,
        typer.Option(
            "--speeds",
            metavar=NAMES,
            help=f"presets of --speed; default {','.join(DEFAULT_SPEEDS)}",
            rich_help_panel=STUDY,
        ),
    ] = None
    epochs: Annotated[
        list[str] | None,
        typer.Option(
            "--epochs",
            metavar=NUMBERS,
            help="one or several training lengths; default: the suite's",
            rich_help_panel=STUDY,
        ),
    ] = None
    batch_size: Annotated[int | None, _study_options.BATCH_SIZE] = None
    seeds: Annotated[int, _study_options.SEEDS] = 3


def show_front(asked: Asked, out: str, *, jobs: int, fresh: bool, force: bool) -> None:
    """Run the study, print its table and write its page."""
    from pathlib import Path

    from vitune.bench.pareto import front_note, front_of, left_out, pareto_study
    from vitune.bench.study.protocol import run_study
    from vitune.bench.tables.front_page import SHORT_HEADS, short_lines, write_front_page
    from vitune.cli._progress import console
    from vitune.cli._study import StudyProgress, check_study_folder, end_with, new_executor
    from vitune.cli._tables import print_columns

    check_study_folder(out, force=force)
    study = pareto_study(
        words(asked.suite),
        words(asked.methods) or DEFAULT_METHODS,
        out,
        speeds=words(asked.speeds) or DEFAULT_SPEEDS,
        epochs=whole_numbers(asked.epochs, "--epochs"),
        seeds=asked.seeds,
        **_common(asked),
    )
    with StudyProgress(out) as watcher:
        outcome = run_study(study, out, executor=new_executor(jobs), watcher=watcher, fresh=fresh)
    points = front_of(study, outcome.results)
    print_columns(SHORT_HEADS, short_lines(points), num_names=2)
    for line in left_out(study, outcome.results):
        console.print(line, soft_wrap=True)
    note = front_note(study, outcome.results)
    page = write_front_page(points, Path(out) / "pareto.html", note=note)
    console.print(f"page: {page}", soft_wrap=True)
    end_with([outcome])


def _common(asked: Asked) -> dict[str, Any]:
    size = asked.batch_size
    given = {"backbone": asked.backbone, "checkpoint": asked.checkpoint}
    return {
        "root": asked.data_root,
        "only": words(asked.tasks),
        "settings": {} if size is None else {"batch_size": size},
        **{name: value for name, value in given.items() if value is not None},
    }
