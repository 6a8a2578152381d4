"""vitune demo: train and compare methods on data that comes with the package, no download."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from vitune.runs import RunSummary
    from vitune.training import Trained

DATA = "demo:digits"
EPOCHS = 30
LEARNING_RATES = {"linear": None, "rlrr": 1e-2, "full": 1e-3}
"""Chosen on a hold-out of the 200 training images, never on the test images: see docs/demo.md.
The linear probe is solved and has no learning rate."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("demo")(demo)


def demo(
    out: str = typer.Option("runs/demo", "--out", help="new folder for the three runs"),
    epochs: int = typer.Option(EPOCHS, "--epochs", help="epochs of each run"),
) -> None:
    """Compare linear probe, RLRR and full fine-tuning on real handwritten digits.

    Trains each on the same 200 images with the bundled backbone, scores each once on the other
    1,597, then merges the RLRR run and checks that merging changed nothing.
    """
    from pathlib import Path

    from rich.table import Table

    from vitune.cli._progress import console, count, percent
    from vitune.files import check_new_folder
    from vitune.inference import evaluate_run, merge_run

    check_new_folder(out)
    scores: list[tuple[RunSummary, float]] = []
    for method in LEARNING_RATES:
        trained = _train(method, f"{out}/{method}", epochs)
        scores.append((trained.summary, evaluate_run(f"{out}/{method}")["top1"]))
    table = Table(box=None, pad_edge=False)
    for title in ("method", "test accuracy", "parameters", "of the backbone", "seconds"):
        table.add_column(title, justify="left" if title == "method" else "right")
    for summary, accuracy in scores:
        trained_count = summary.num_trainable_without_head or 0
        table.add_row(
            summary.method_title,
            percent(accuracy),
            count(trained_count),
            percent(trained_count / (summary.num_total or 1)),
            f"{summary.seconds:.0f}",
        )
    console.print()
    console.print(table)
    console.print("one seed, 1,597 test images; parameters without the head\n")
    difference = merge_run(f"{out}/rlrr", f"{out}/rlrr-merged")
    console.print(f"merged RLRR == adapter: logits differ by {difference:.0e} of the largest")
    for title, path in (("report", "rlrr/report.html"), ("merged model", "rlrr-merged")):
        console.print(f"{title}: {Path(out) / path}", soft_wrap=True)


def _train(method: str, out: str, epochs: int) -> Trained:
    from vitune.cli._progress import TrainingProgress
    from vitune.training.fitting import fit
    from vitune.training.train_config import TrainConfig

    settings = {"data": DATA, "method": method, "epochs": epochs, "refit": True}
    rate = LEARNING_RATES[method]
    plain = {} if rate is None else {"lr": rate, "start": "plain"}
    config = TrainConfig.make({**settings, **plain})
    observer = TrainingProgress()
    try:
        return fit(config, out=out, observer=observer)
    finally:
        observer.close()
