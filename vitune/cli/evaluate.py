"""vitune evaluate: score a trained run on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from vitune.cli._options import DATA, IMAGE_GROUPS, MODEL, PATHS, RUNNING
from vitune.cli._plugins import with_plugins
from vitune.cli._words import paths
from vitune.late_imports import uncollected


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("evaluate")(evaluate)


@with_plugins
def evaluate(
    run: str = typer.Argument(..., help="run folder, adapter or merged model"),
    data: str = typer.Option(
        None, "--data", help="labelled images; default: those of the run", rich_help_panel=DATA
    ),
    split: str = typer.Option(
        None, "--split", help="default: test, or all images if there is none", rich_help_panel=DATA
    ),
    groups: str = typer.Option(None, "--groups", help=IMAGE_GROUPS, rich_help_panel=DATA),
    including_training: bool = typer.Option(
        False,
        "--including-training",
        help="also score the run's training images; the result is marked",
        rich_help_panel=DATA,
    ),
    skip_bad_images: bool = typer.Option(
        False, help="skip unreadable images", rich_help_panel=DATA
    ),
    force: bool = typer.Option(
        False, "--force", help="accept another backbone", rich_help_panel=MODEL
    ),
    device: str = typer.Option("auto", help="auto, cpu or cuda", rich_help_panel=RUNNING),
    exits: str = typer.Option("auto", help="full: no image leaves early", rich_help_panel=RUNNING),
    beside: list[str] = typer.Option(
        [],
        "--beside",
        metavar=PATHS,
        help="other runs to time and compare with the exits",
        rich_help_panel=RUNNING,
    ),
) -> None:
    """Score a trained run on labelled images, once, with calibration and per-class figures.

    Images used to train or validate the run are recognised by content and left out; if there are no
    others, its validation images are scored. The result goes into RUN/evaluation/ and into
    RUN/report.html.
    """
    from rich.text import Text

    from vitune.cli._progress import Counting, console, percent, print_named
    from vitune.report import ENOUGH_TO_BIN, counted, wilson_interval

    with uncollected():
        from vitune.inference import evaluate_run

    reading, scoring = Counting("reading images"), Counting("scoring")
    try:
        result = evaluate_run(
            run,
            data,
            split=split,
            groups=groups,
            skip_bad_images=skip_bad_images,
            force=force,
            device=device,
            including_training=including_training,
            exits=exits,
            beside=paths(beside),
            on_read=reading,
            on_score=scoring,
        )
    finally:
        reading.close()
        scoring.close()
    independent = result.get("effective_images") or result["num_images"]
    low, high = wilson_interval(result["top1"], independent)
    console.print(
        Text.assemble(
            (f"accuracy {percent(result['top1'])}", "bold"),
            f" (95 % interval {percent(low)} to {percent(high)}) on "
            f"{result['num_images']:,} images",
        )
    )
    confidence = (
        f"calibration error {percent(result['ece'])} "
        f"({percent(result['ece_by_chance'])} by chance alone)"
    )
    if result["num_images"] < ENOUGH_TO_BIN:
        confidence = "too few to state a calibration error"
    top5 = f"top-5 {percent(result['top5'])}, " if len(result["classes"]) > 5 else ""
    console.print(
        f"mean per class {percent(result['mean_per_class'])}, {top5}"
        f"NLL {result['nll']:.3f}, {confidence}",
        soft_wrap=True,
    )
    for mark in _marks(result, run):
        console.print(mark, style="yellow", soft_wrap=True)
    for line in exit_lines(result.get("exits")):
        console.print(line, soft_wrap=True)
    if result["skipped_images"]:
        total = result["skipped_images"]
        print_named(f"{counted(total, 'unreadable image')} skipped", result["skipped"], total)
    report = Path(run) / "report.html"
    if report.is_file():
        console.print(f"report: {report}", soft_wrap=True)


def _marks(result: dict[str, Any], run: str) -> list[str]:
    """Warnings about what the score does not mean."""
    from vitune.report import group_mark, score_marks
    from vitune.runs import RunFolder

    seen, left_out = result["seen"], result["left_out"]
    if seen is None:
        folder = RunFolder(Path(run))
        why = "only a run folder records that"
        if folder.config.is_file():
            why = f"{folder.images.name} is missing from the run folder"
        return [f"Unknown whether the model was trained on these images: {why}."]
    marks = score_marks(
        result["num_images"], seen["trained"], seen["watched"], sum(left_out.values())
    )
    if "num_groups" in result:
        marks.append(group_mark(result["num_groups"], result["effective_images"]))
    return marks


def exit_lines(found: dict[str, Any] | None) -> list[str]:
    """Where images left and what that costs compared with the alternatives, one line each."""
    from vitune.cli._progress import percent

    if found is None:
        return []
    lines = []
    if not found["is_calibrated"]:
        lines.append("the exits are not calibrated: no image leaves early")
    lines += [
        f"exit {row['name']:>4}: {percent(row['share']):>7} of the images, "
        f"{percent(row['accuracy_of_leaving']):>7} of these right, {row['gflops']:.3f} GFLOPs"
        for row in found["exits"]
    ]
    lines.append(
        f"leaving early changed {percent(found['disagreement'])} of the answers, and made "
        f"{percent(found['error_gap'])} wrong that the full network gets right"
    )
    if found["on_calibration_images"]:
        lines.append("these are the calibration images: score others to check the certificate")
    width = max(len(row["name"]) for row in found["systems"])
    lines += [
        f"{row['name']:<{width}}  accuracy {percent(row['accuracy'])}, {row['gflops']:.3f} GFLOPs, "
        f"{row['ms_per_image']:.3f} ms per image ({row['num_timed']} images, batch 32)"
        for row in found["systems"]
    ]
    return lines
