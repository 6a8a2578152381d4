"""vitune bench: studies under the honest protocol, their tables, and speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from vitune.cli._study_options import KEEP, METHOD_ARG, OVERLAP, RERUN, method_arguments

if TYPE_CHECKING:
    from vitune.bench.study.plan import Study
    from vitune.bench.study.protocol import Outcome
    from vitune.bench.tables.study_table import Table

bench = typer.Typer(help="Run studies under the honest protocol; measure speed.")

FORCE = typer.Option(False, "--force", help="write into a folder that holds files")
OUT = typer.Option(..., "--out", help="folder; a stopped study continues in it")
JOBS = typer.Option(1, "--jobs", help="processes on this machine")
RAY = typer.Option(None, "--ray", help="'local', or the address of a Ray cluster")
GPUS = typer.Option(0.0, "--gpus-per-run", help="with --ray; 0.5 puts two runs on one GPU")
FORMAT = typer.Option("", "--format", help="also print markdown, csv or latex")


def add_to(app: typer.Typer) -> None:
    """Register the verb and its own verbs."""
    app.add_typer(bench, name="bench")


@bench.command("run")
def run(
    suite: str = typer.Option(
        None, "--suite", help="demo, vtab1k, fgvc, fewshot, FILE.yaml or one data set"
    ),
    preset: str = typer.Option(None, "--preset", help="a published recipe: vitune bench presets"),
    methods: str = typer.Option("", "--methods", help="with --suite: names separated by ,"),
    data_root: str = typer.Option(None, "--data-root", help="where the suite's folders lie"),
    out: str = OUT,
    backbone: str = typer.Option(None, "--backbone"),
    checkpoint: str = typer.Option(None, "--checkpoint", help="local weights for the backbone"),
    epochs: int = typer.Option(None, "--epochs"),
    batch_size: int = typer.Option(
        None, "--batch-size", help="images a step; default 32, or all where they are fewer"
    ),
    lrs: str = typer.Option("", "--lrs", help="learning rates to choose from on validation"),
    search: str = typer.Option("", "--search", help="tpe or asha (Optuna), instead of a grid"),
    trials: int = typer.Option(16, "--trials", help="with --search: of each method and task"),
    untuned: bool = typer.Option(False, "--defaults", help="choose nothing, use the defaults"),
    seeds: int = typer.Option(3, "--seeds", help="runs of each method and task"),
    shots: str = typer.Option(
        "", "--shots", help="training images of each class, e.g. 1,2,4,8,16: a curve on the page"
    ),
    method_arg: list[str] = METHOD_ARG,
    tasks: str = typer.Option("", "--tasks", help="only these, separated by ,"),
    allow_missing: bool = typer.Option(False, "--allow-missing", help="go on without some tasks"),
    protocol: str = typer.Option("honest", "--protocol", help="honest or as-published"),
    dry_run: bool = typer.Option(False, "--dry-run", help="print runs, hours and memory only"),
    keep: str = KEEP,
    allow_overlap: bool = OVERLAP,
    rerun_changed: bool = RERUN,
    jobs: int = JOBS,
    ray: str = RAY,
    gpus_per_run: float = GPUS,
    table_format: str = FORMAT,
    force: bool = FORCE,
) -> None:
    """Run methods on a suite, or a published recipe, and print the table.

    Settings are chosen on validation images, every method is refitted on training and validation
    images for each seed, and the test images are opened once after the last epoch. The protocol
    'as-published' looks at the test images every epoch, as the official scripts do, and prints
    the honest figure beside it. Exit code 1 means that some runs failed or diverged.
    """
    from vitune.bench.beside_honest import run_both
    from vitune.bench.study.protocol import run_study
    from vitune.bench.tables.study_table import make_table
    from vitune.cli._study import StudyProgress, check_study_folder, new_executor
    from vitune.cli._words import numbers, whole_numbers, words
    from vitune.errors import VituneError

    if (suite is None) == (preset is None):
        raise VituneError("bench run: got --suite and --preset or neither, expected one of them.")
    settings_of_suites = {
        "--methods": methods, "--lrs": lrs, "--search": search, "--defaults": untuned,
        "--shots": shots, "--method-arg": method_arg,
    }  # fmt: skip
    for option, given in settings_of_suites.items():
        if preset is not None and given:
            raise VituneError(
                f"{option}: got it with --preset, a recipe has its own methods and settings."
            )
    check_study_folder(out, force=force)
    names = words(methods)
    given_settings = {} if batch_size is None else {"batch_size": batch_size}
    common: dict[str, Any] = {
        "root": data_root,
        "only": words(tasks),
        "allow_missing": allow_missing,
        "epochs": epochs,
        "seeds": seeds,
        "keep": tuple(words(keep)),
        "allow_overlap": allow_overlap,
    }
    fields = {"backbone": backbone, "checkpoint": checkpoint}
    common |= {name: value for name, value in fields.items() if value is not None}

    def planned(which: str) -> Study:
        from vitune.bench.launching import preset_study, suite_study

        if preset is not None:
            return preset_study(
                preset,
                out,
                protocol=which,  # type: ignore[arg-type]
                overrides=given_settings,
                **common,
            )
        rates = numbers(lrs, "--lrs")
        return suite_study(
            suite,
            names,
            out,
            lrs=rates,
            search=search,
            trials=trials,
            tune=not untuned,
            shots=whole_numbers(shots, "--shots"),
            method_args=method_arguments(method_arg or [], names),
            settings=given_settings,
            protocol=which,
            **common,
        )

    study = planned(protocol)
    if dry_run:
        _print_estimate(study, jobs)
        return
    watcher = StudyProgress()
    executor = new_executor(jobs, ray, gpus_per_run)
    try:
        if protocol == "as-published":
            both = run_both(
                planned("honest"), study, out, executor=executor, watcher=watcher,
                fresh=rerun_changed,
            )  # fmt: skip
            table, outcomes = both.table, [both.honest, both.published]
        else:
            outcomes = [
                run_study(study, out, executor=executor, watcher=watcher, fresh=rerun_changed)
            ]
            table = make_table(outcomes[0].results, missing=study.missing)
    finally:
        watcher.close()
    _finish(table, out, study, table_format, outcomes)


@bench.command("study")
def study(
    file: str = typer.Argument(..., help="YAML: variants, tasks, grid, seeds"),
    out: str = OUT,
    jobs: int = JOBS,
    ray: str = RAY,
    gpus_per_run: float = GPUS,
    keep: str = KEEP,
    allow_overlap: bool = OVERLAP,
    rerun_changed: bool = RERUN,
    table_format: str = FORMAT,
    force: bool = FORCE,
) -> None:
    """Run a study from a file: search on validation, refit, open the test split once.

    Exit code 1 means that some runs failed or diverged.
    """
    from vitune.bench.study.plan import Study
    from vitune.bench.study.protocol import run_study
    from vitune.bench.tables.study_table import make_table
    from vitune.cli._study import StudyProgress, check_study_folder, new_executor
    from vitune.cli._words import words

    check_study_folder(out, force=force)
    asked = Study.read(file)
    given: dict[str, Any] = {}
    if keep:
        given["keep"] = tuple(words(keep))
    if allow_overlap:
        given["allow_overlap"] = True
    if given:
        asked = Study.make({**asked.model_dump(), **given})
    watcher = StudyProgress()
    executor = new_executor(jobs, ray, gpus_per_run)
    try:
        outcome = run_study(asked, out, executor=executor, watcher=watcher, fresh=rerun_changed)
    finally:
        watcher.close()
    table = make_table(outcome.results, missing=asked.missing)
    _finish(table, out, asked, table_format, [outcome])


@bench.command("table")
def table(
    folders: list[str] = typer.Argument(..., help="study folders"),
    split: bool = typer.Option(False, "--split", help="backbones and protocols in own rows"),
    check: bool = typer.Option(
        True, "--check/--no-check", help="say which files have changed since the runs"
    ),
    table_format: str = FORMAT,
) -> None:
    """Print the table of one or several studies, as far as they have come.

    Runs that are still to come are named, and so is every task or backbone whose files are no
    longer those that its runs saw.
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
    out: str = typer.Option(None, "--out", help="JSON to record them in; other backbones stay"),
    against: list[str] = typer.Option(
        None, "--against", help="a study at the defaults ('bench run --defaults'); repeatable"
    ),
) -> None:
    """Choose one setting a method over all tasks of studies, on validation alone.

    With --against, test accuracies of a study that ran at the defaults stand beside those of the
    per-task choices.
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
    default, tuned = (
        [result for folder in side for result in read_results(folder)]
        for side in (against or (), folders)
    )
    typer.echo(choices_table(found))
    if against:
        typer.echo(markdown_of(default_against_tuned(default, tuned)))
    if out is not None:
        command = shlex.join(["vitune", "bench", "defaults", *folders, "--out", out])
        record(found, studies, out, command=command)


@bench.command("presets")
def presets(
    name: str = typer.Argument(None, help="show this one whole"),
    page: bool = typer.Option(False, "--page", help="print docs/deviations.md, about them all"),
) -> None:
    """List the published recipes, or show one with its images and all that differs."""
    from vitune.bench.preset_page import deviations_page, preset_lines
    from vitune.bench.presets import load_preset, preset_names
    from vitune.cli._progress import console

    if page:
        typer.echo(deviations_page(), nl=False)
        return
    for found in preset_names() if name is None else (name,):
        preset = load_preset(found)
        console.print(f"[bold]{found}[/]  {preset.title}")
        if name is not None:
            for line in preset_lines(preset):
                console.print(line, markup=False)


@bench.command("speed")
def speed(
    backbone: str = typer.Option("vit_base_patch16_224", "--backbone"),
    methods: str = typer.Option("", "--methods", help="separated by ,; default: all that it knows"),
    batch: str = typer.Option("8,32", "--batch", help="images a step"),
    precision: str = typer.Option("fp32,bf16", "--precision"),
    device: str = typer.Option("auto", "--device"),
    rounds: int = typer.Option(5, "--rounds", help="counted rounds after one of warm-up"),
    image_size: int = typer.Option(None, "--image-size"),
    memory: bool = typer.Option(True, help="take peak memory, a fresh process a figure"),
    inference: bool = typer.Option(True, help="time merged and un-merged inference"),
    out: str = typer.Option(None, "--out", help="JSON; a second call compares with it"),
) -> None:
    """Time training steps of several methods in one process, in turns, and compare."""
    from vitune.bench.speed.measuring import ALL_METHODS, SpeedPlan, bench_speed
    from vitune.bench.speed.speed_table import compare_with, format_table
    from vitune.cli._progress import console
    from vitune.cli._speed import print_speed
    from vitune.cli._words import numbers, words

    plan = SpeedPlan(
        backbone=backbone,
        methods=words(methods) or ALL_METHODS,
        batches=[int(size) for size in numbers(batch, "--batch")],
        precisions=words(precision),
        device=device,
        rounds=rounds,
        image_size=image_size,
        memory=memory,
        inference=inference,
    )
    result = bench_speed(plan, out=out, say=lambda text: console.print(text, style="dim"))
    if console.is_terminal:
        print_speed(result)
    else:
        typer.echo(format_table(result))
    if result.get("previous"):
        for line in compare_with(result["previous"], result):
            console.print(line, markup=False)


def _finish(
    table: Table, out: str, study: Study, table_format: str, outcomes: Sequence[Outcome]
) -> None:
    """The table on the terminal and as a page in the study's folder; exit 1 for lost runs."""
    from pathlib import Path

    from vitune.bench.tables.study_page import note_on, write_study_page
    from vitune.bench.tables.table_formats import formatted
    from vitune.cli._progress import console
    from vitune.cli._study import end_with, print_table

    print_table(table)
    if table_format:
        typer.echo(formatted(table, table_format))
    page = write_study_page(
        table,
        Path(out) / "results.html",
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
            f"{row.step_ms:.0f}",
            f"{row.hours:.2f}",
            f"{row.peak_mib:,.0f}",
        )
        for row in estimates
    ]
    headings = ("method", "task", "runs", "step ms", "hours", "peak MiB")
    print_columns(headings, lines, num_names=2)
    console.print(f"about {total_hours(estimates, jobs):.1f} hours on this machine")
