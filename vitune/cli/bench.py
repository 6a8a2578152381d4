"""vitune bench: studies under the honest protocol, their tables, and speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitune.cli import _completion, _pareto, _study_options
from vitune.cli._bench_run import Asked, Choosing, Images, Subject, run_asked
from vitune.cli._options import (
    MEASURE,
    MODEL,
    NAMES,
    NUMBERS,
    OUTPUT,
    PATHS,
    RUNNING,
    Verbs,
    with_records,
)
from vitune.cli._study_options import Kept, Running
from vitune.cli._words import paths, whole_numbers, words

if TYPE_CHECKING:
    from vitune.bench.study.plan import Study
    from vitune.bench.study.protocol import Outcome
    from vitune.bench.tables.study_table import Table

bench = Verbs(help="Compare methods over tasks and seeds; measure speed.")


def add_to(app: typer.Typer) -> None:
    """Register the command and its subcommands."""
    app.add_typer(bench, name="bench")


@bench.command("run")
@with_records
def run(
    images: Images,
    subject: Subject,
    choosing: Choosing,
    running: Running,
    kept: Kept,
    dry_run: bool = typer.Option(
        False, "--dry-run", help="only print runs, hours and memory", rich_help_panel=OUTPUT
    ),
) -> None:
    """Run methods on a suite, or a published recipe, and print the table.

    Settings are chosen on validation images, every method is refitted on training and validation
    images for each seed, and the test images are opened once after the last epoch. The protocol
    'as-published' looks at the test images every epoch, as the official scripts do, and prints
    the honest figure beside it. Exit code 1 means that some runs failed or diverged.
    """
    from vitune.bench.study.execution import check_jobs
    from vitune.cli._study import check_study_folder

    check_jobs(running.jobs)
    asked = Asked(images, subject, choosing, kept)
    check_study_folder(kept.out, force=kept.force)
    study = asked.study(choosing.protocol)
    if dry_run:
        _print_estimate(study, running.jobs)
        return
    table, outcomes = run_asked(asked, study, running)
    _finish(table, kept, study, outcomes)


@bench.command("study")
@with_records
def study(
    running: Running,
    kept: Kept,
    file: str = typer.Argument(..., help="YAML: variants, tasks, grid, seeds"),
    allow_overlap: Annotated[bool, _study_options.OVERLAP] = False,
) -> None:
    """Run a study from a file: search on validation, refit, open the test split once.

    Exit code 1 means that some runs failed or diverged.
    """
    from vitune.bench.study.plan import Study
    from vitune.bench.study.protocol import run_study
    from vitune.bench.tables.study_table import make_table
    from vitune.cli._study import StudyProgress, check_study_folder, new_executor

    check_study_folder(kept.out, force=kept.force)
    asked = Study.read(file)
    asked.require_known_tasks()
    given: dict[str, Any] = {}
    if kept.keep:
        given["keep"] = tuple(words(kept.keep))
    if allow_overlap:
        given["allow_overlap"] = True
    if given:
        asked = Study.make({**asked.model_dump(), **given})
    executor = new_executor(running.jobs, running.ray, running.gpus_per_run)
    with StudyProgress(kept.out) as watcher:
        outcome = run_study(
            asked, kept.out, executor=executor, watcher=watcher, fresh=running.rerun_changed
        )
    table = make_table(outcome.results, missing=asked.missing)
    _finish(table, kept, asked, [outcome])


@bench.command("table")
def table(
    folders: list[str] = typer.Argument(..., help="study folders"),
    split: bool = typer.Option(False, "--split", help="one row per backbone and protocol"),
    check: bool = typer.Option(
        True, "--check/--no-check", help="report files that changed since the runs"
    ),
    table_format: Annotated[str, _study_options.FORMAT] = "",
) -> None:
    """Print the table of one or more studies, finished or not.

    Lists the runs still to come, and every task or backbone whose files have changed since its
    runs.
    """
    from vitune.bench.beside_honest import with_remarks
    from vitune.bench.study.current import changed_since
    from vitune.bench.study.protocol import read_missing, read_results, read_study, read_unfinished
    from vitune.bench.tables.study_table import make_table
    from vitune.bench.tables.table_formats import formatted
    from vitune.cli._study import print_table

    by_folder = {folder: read_results(folder) for folder in folders}
    made = make_table(
        [result for found in by_folder.values() for result in found],
        split_columns=split,
        missing=[task for folder in folders for task in read_missing(folder)],
        unfinished=[run for folder in folders for run in read_unfinished(folder)],
    )
    studies = {folder: read_study(folder) for folder in folders}
    remarks = [remark for study in studies.values() for remark in study.remarks]
    if check:
        remarks += [
            note
            for folder, found in by_folder.items()
            for note in changed_since(studies[folder], found)
        ]
    made = with_remarks(made, list(dict.fromkeys(remarks)))
    if table_format:
        typer.echo(formatted(made, table_format))
    else:
        print_table(made)


@bench.command("defaults")
def defaults(
    folders: list[str] = typer.Argument(..., help="study folders with a grid"),
    out: str = typer.Option(
        None, "--out", help="JSON file to update; entries of other backbones stay"
    ),
    against: list[str] = typer.Option(
        None, "--against", metavar=PATHS, help="studies run with 'bench run --defaults'"
    ),
) -> None:
    """Choose one setting per method over all tasks of one or more studies, on validation alone.

    With --against, compares the test accuracies of a study that ran at the defaults with those of
    the per-task choices.
    """
    import shlex

    from vitune.bench.defaults import (
        choices_table,
        default_against_tuned,
        defaults_of,
        markdown_of,
        record,
    )
    from vitune.bench.study.protocol import read_results

    found, studies = defaults_of(folders)
    beside = paths(against)
    default, tuned = (
        [result for folder in side for result in read_results(folder)] for side in (beside, folders)
    )
    typer.echo(choices_table(found))
    if beside:
        typer.echo(markdown_of(default_against_tuned(default, tuned)))
    if out is not None:
        command = shlex.join(["vitune", "bench", "defaults", *folders, "--out", out])
        record(found, studies, out, command=command)


@bench.command("presets")
def presets(
    name: str = typer.Argument(
        None, help="show this preset in full", autocompletion=_completion.presets
    ),
    page: bool = typer.Option(False, "--page", help="print docs/deviations.md: all presets"),
) -> None:
    """List the published recipes, or show one and how it differs from its source."""
    from rich.text import Text

    from vitune.bench.preset_page import deviations_page, preset_lines
    from vitune.bench.presets import load_preset, preset_names
    from vitune.cli._progress import console

    if page:
        typer.echo(deviations_page(), nl=False)
        return
    for found in preset_names() if name is None else (name,):
        preset = load_preset(found)
        console.print(Text.assemble((found, "bold"), f"  {preset.title}"))
        if name is not None:
            for line in preset_lines(preset):
                console.print(line)


@bench.command("pareto")
@with_records
def pareto(
    asked: _pareto.Asked,
    jobs: Annotated[int, _study_options.JOBS] = 1,
    rerun_changed: Annotated[bool, _study_options.RERUN] = False,
    out: Annotated[str, _study_options.OUT] = ...,  # type: ignore[assignment]
    force: Annotated[bool, _study_options.FORCE] = False,
) -> None:
    """Show accuracy against time and memory: methods x speed presets x epochs.

    Every method runs at its default settings. Validation images are scored and never trained on;
    the test images are opened once per run, after the last epoch. Exit code 1 means that some runs
    failed or diverged.
    """
    _pareto.show_front(asked, out, jobs=jobs, fresh=rerun_changed, force=force)


@dataclass(frozen=True)
class Timed:
    """What is timed."""

    backbone: Annotated[str, _study_options.BACKBONE] = "vit_base_patch16_224"
    methods: Annotated[list[str] | None, _study_options.METHODS] = None
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="pixels", rich_help_panel=MODEL)
    ] = None
    batch: Annotated[
        list[str] | None,
        typer.Option(
            "--batch",
            metavar=NUMBERS,
            help="images per step; default 8,32",
            rich_help_panel=MEASURE,
        ),
    ] = None
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar=NAMES,
            help="default fp32, and bf16 unless the device emulates it",
            rich_help_panel=MEASURE,
        ),
    ] = None
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds", help="timed rounds, after one warm-up round", rich_help_panel=MEASURE
        ),
    ] = 5
    memory: Annotated[
        bool,
        typer.Option(
            help="measure peak memory, one fresh process per figure", rich_help_panel=MEASURE
        ),
    ] = True
    inference: Annotated[
        bool, typer.Option(help="time merged and un-merged inference", rich_help_panel=MEASURE)
    ] = True


@bench.command("speed")
@with_records
def speed(
    timed: Timed,
    device: str = typer.Option(
        "auto", "--device", help="auto, cpu or cuda", rich_help_panel=RUNNING
    ),
    out: str = typer.Option(
        None, "--out", help="JSON file; a second call is compared with it", rich_help_panel=OUTPUT
    ),
) -> None:
    """Compare the step time and memory of several methods."""
    from vitune.bench.speed.measuring import ALL_METHODS, SpeedPlan, bench_speed
    from vitune.bench.speed.speed_table import compare_with, format_table
    from vitune.cli._progress import console
    from vitune.cli._speed import print_speed

    plan = SpeedPlan(
        backbone=timed.backbone,
        methods=words(timed.methods) or ALL_METHODS,
        batches=whole_numbers(timed.batch, "--batch") or [8, 32],
        precisions=words(timed.precision),
        device=device,
        rounds=timed.rounds,
        image_size=timed.image_size,
        memory=timed.memory,
        inference=timed.inference,
    )
    result = bench_speed(plan, out=out, say=lambda text: console.print(text, style="dim"))
    if console.is_terminal:
        print_speed(result)
    else:
        typer.echo(format_table(result))
    if result.get("previous"):
        for line in compare_with(result["previous"], result):
            console.print(line)


def _finish(table: Table, kept: Kept, study: Study, outcomes: Sequence[Outcome]) -> None:
    """Print the table and write it as a page in the study's folder; exit 1 for lost runs."""
    from pathlib import Path

    from vitune.bench.tables.study_page import note_on, write_study_page
    from vitune.bench.tables.table_formats import formatted
    from vitune.cli._progress import console
    from vitune.cli._study import end_with, print_table

    print_table(table)
    if kept.table_format:
        typer.echo(formatted(table, kept.table_format))
    page = write_study_page(
        table,
        Path(kept.out) / "results.html",
        heading=study.name,
        note=note_on(study, table),
        choices=outcomes[0].choices,
        shots={task.name: task.shots for task in study.tasks if task.shots is not None},
    )
    console.print(f"page: {page}", soft_wrap=True)
    end_with(outcomes)


def _print_estimate(study: Study, jobs: int) -> None:
    from vitune.bench.cost import estimate, total_hours
    from vitune.cli._progress import console
    from vitune.cli._tables import print_columns

    estimates = estimate(study)
    lines = [
        (
            row.label,
            row.task,
            str(row.num_cells),
            "none" if row.step_ms is None else f"{row.step_ms:.0f}",
            f"{row.hours:.2f}",
            f"{row.peak_mib:,.0f}",
        )
        for row in estimates
    ]
    headings = ("method", "task", "runs", "step ms", "hours", "peak MiB")
    print_columns(headings, lines, num_names=2)
    console.print(f"about {total_hours(estimates, jobs):.1f} hours on this machine")
