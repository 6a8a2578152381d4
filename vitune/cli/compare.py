"""vitune compare: several methods on the same images, in one table."""

from __future__ import annotations

from typing import Any

import typer

from vitune.cli._study_options import KEEP, METHOD_ARG, OVERLAP, RERUN, method_arguments
from vitune.training.train_config import TrainConfig


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("compare")(compare)


def compare(
    data: str = typer.Option(..., "--data", help="images, as for train"),
    methods: str = typer.Option("linear,bitfit,lora,rlrr,full", "--methods", help="separated by ,"),
    out: str = typer.Option(..., "--out", help="folder; a stopped comparison continues in it"),
    backbone: str = typer.Option(TrainConfig.model_fields["backbone"].default, "--backbone"),
    checkpoint: str = typer.Option(None, "--checkpoint", help="local weights for the backbone"),
    image_size: int = typer.Option(None, "--image-size", help="input size in pixels"),
    epochs: int = typer.Option(20, "--epochs", help="of every run"),
    lrs: str = typer.Option(
        "", "--lrs", help="learning rates to choose from on validation, e.g. 1e-3,3e-3,1e-2"
    ),
    seeds: int = typer.Option(3, "--seeds", help="runs of each method"),
    method_arg: list[str] = METHOD_ARG,
    batch_size: int = typer.Option(
        None, "--batch-size", help="images a step; default 32, or all where they are fewer"
    ),
    jobs: int = typer.Option(1, "--jobs", help="processes on this machine"),
    config: str = typer.Option(None, "--config", help="YAML of further training settings"),
    keep: str = KEEP,
    allow_overlap: bool = OVERLAP,
    rerun_changed: bool = RERUN,
    force: bool = typer.Option(False, "--force", help="write into a folder that holds files"),
) -> None:
    """Train several methods under one honest protocol and print one table.

    Learning rates are chosen on the validation images; then each method is trained on training
    and validation images for every seed, and the test images are opened once after the last
    epoch. Where there is no test split, validation accuracy is shown and says so. Exit code 1
    means that some runs failed or diverged.
    """
    from vitune.bench.comparing import compare as run_comparison
    from vitune.bench.comparing import comparison_study
    from vitune.cli._progress import console
    from vitune.cli._study import (
        StudyProgress,
        check_study_folder,
        end_with,
        new_executor,
        print_table,
    )
    from vitune.cli._words import numbers, words
    from vitune.training.train_config import read_yaml

    check_study_folder(out, force=force)
    names = words(methods)
    study = comparison_study(
        data,
        names,
        backbone=backbone,
        checkpoint=checkpoint,
        image_size=image_size,
        epochs=epochs,
        lrs=numbers(lrs, "--lrs"),
        seeds=seeds,
        method_args=method_arguments(method_arg or [], names),
        settings=_further_settings(batch_size, read_yaml(config) if config else {}),
        keep=words(keep),
        allow_overlap=allow_overlap,
    )
    watcher = StudyProgress()
    try:
        comparison = run_comparison(
            study, out, executor=new_executor(jobs), watcher=watcher, fresh=rerun_changed
        )
    finally:
        watcher.close()
    print_table(comparison.table)
    console.print(f"page: {comparison.page}", soft_wrap=True)
    end_with([comparison.outcome])


def _further_settings(batch_size: int | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the file, which win; a batch size that was not given is left to training."""
    return settings if batch_size is None else {"batch_size": batch_size, **settings}
