"""vitune compare: several methods on the same images, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitune.cli import _study_options
from vitune.cli._options import DATA, MODEL, OUTPUT, STUDY, with_records
from vitune.cli._study_options import method_arguments
from vitune.cli._words import numbers, pair_words, words
from vitune.training.train_config import TrainConfig

if TYPE_CHECKING:
    from vitune.bench.study.plan import Study

DEFAULT_METHODS = ("linear", "bitfit", "lora", "rlrr", "full")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("compare")(compare)


@dataclass(frozen=True)
class Compared:
    """What is trained, and on which images."""

    data: Annotated[
        str, typer.Option("--data", help="images, as for vitune train", rich_help_panel=DATA)
    ]
    allow_overlap: Annotated[bool, _study_options.OVERLAP] = False
    methods: Annotated[
        list[str] | None,
        _study_options.methods_option(f"default {','.join(DEFAULT_METHODS)}"),
    ] = None
    method_arg: Annotated[list[str] | None, _study_options.METHOD_ARG] = None
    backbone: Annotated[str, _study_options.BACKBONE] = TrainConfig.model_fields["backbone"].default
    checkpoint: Annotated[str | None, _study_options.CHECKPOINT] = None
    image_size: Annotated[
        int | None,
        typer.Option("--image-size", help="input size in pixels", rich_help_panel=MODEL),
    ] = None


@dataclass(frozen=True)
class Trained:
    """How every method is trained."""

    epochs: Annotated[
        int, typer.Option("--epochs", help="epochs of each run", rich_help_panel=STUDY)
    ] = 20
    batch_size: Annotated[int | None, _study_options.BATCH_SIZE] = None
    lrs: Annotated[list[str] | None, _study_options.LRS] = None
    seeds: Annotated[int, _study_options.SEEDS] = 3
    config: Annotated[
        str | None,
        typer.Option(
            "--config", help="YAML file with more training settings", rich_help_panel=STUDY
        ),
    ] = None


@with_records
def compare(
    compared: Compared,
    trained: Trained,
    jobs: Annotated[int, _study_options.JOBS] = 1,
    rerun_changed: Annotated[bool, _study_options.RERUN] = False,
    out: str = typer.Option(
        ..., "--out", help="folder; give it again to continue", rich_help_panel=OUTPUT
    ),
    keep: Annotated[list[str] | None, _study_options.KEEP] = None,
    force: Annotated[bool, _study_options.FORCE] = False,
) -> None:
    """Train several methods under one honest protocol and print one table.

    Learning rates are chosen on the validation images; then each method is trained on training and
    validation images for every seed, and the test images are opened once after the last epoch. If
    there is no test split, validation accuracy is shown and labelled as such. Exit code 1 means
    that some runs failed or diverged.
    """
    from vitune.bench.comparing import compare as run_comparison
    from vitune.cli._progress import console
    from vitune.cli._study import (
        StudyProgress,
        check_study_folder,
        end_with,
        new_executor,
        print_table,
    )

    check_study_folder(out, force=force)
    study = _study(compared, trained, words(keep))
    with StudyProgress(out) as watcher:
        comparison = run_comparison(
            study, out, executor=new_executor(jobs), watcher=watcher, fresh=rerun_changed
        )
    print_table(comparison.table)
    console.print(f"page: {comparison.page}", soft_wrap=True)
    end_with([comparison.outcome])


def _study(compared: Compared, trained: Trained, keep: list[str]) -> Study:
    from vitune.bench.comparing import comparison_study
    from vitune.training.train_config import read_yaml

    names = words(compared.methods) or list(DEFAULT_METHODS)
    further = read_yaml(trained.config) if trained.config else {}
    return comparison_study(
        compared.data,
        names,
        backbone=compared.backbone,
        checkpoint=compared.checkpoint,
        image_size=compared.image_size,
        epochs=trained.epochs,
        lrs=numbers(trained.lrs, "--lrs"),
        seeds=trained.seeds,
        method_args=method_arguments(pair_words(compared.method_arg), names),
        settings=_further_settings(trained.batch_size, further),
        keep=keep,
        allow_overlap=compared.allow_overlap,
    )


def _further_settings(batch_size: int | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The file's settings, which take precedence, with the batch size if it was given."""
    return settings if batch_size is None else {"batch_size": batch_size, **settings}
