"""vitune demo: train and compare methods on data that comes with the package, no download."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vitune.errors import InterruptError, VituneError

if TYPE_CHECKING:
    from vitune.runs import RunFolder, RunSummary

DATA = "demo:digits"
EPOCHS = 30
LEARNING_RATES = {"linear": None, "rlrr": 1e-2, "full": 1e-3}
"""Chosen on a hold-out of the 200 training images, never on the test images: see docs/demo.md.
The linear probe is solved and has no learning rate."""
MERGED = "rlrr-merged"
"""Written last: a folder with it holds a whole demo."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("demo")(demo)


def demo(
    out: str = typer.Option("runs/demo", "--out", help="folder for the three runs; again to go on"),
    epochs: int = typer.Option(EPOCHS, "--epochs", help="epochs of each run"),
) -> None:
    """Compare linear probe, RLRR and full fine-tuning on real handwritten digits.

    Trains each on the same 200 images with the bundled backbone, scores each once on the other
    1,597, then merges the RLRR run and checks that merging changed nothing. If it was stopped, the
    same command goes on.
    """
    from rich.table import Table

    from vitune.cli._progress import console, count, percent
    from vitune.inference import merge_run

    _check_folder(Path(out), epochs)
    try:
        scores = [_scored(method, Path(out) / method, epochs) for method in LEARNING_RATES]
        difference = merge_run(f"{out}/rlrr", f"{out}/{MERGED}")
    except KeyboardInterrupt:
        raise InterruptError(f"stopped. {_what_is_kept(out, epochs)}") from None
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
    console.print(f"merged RLRR == adapter: logits differ by {difference:.0e} of the largest")
    for title, path in (("report", "rlrr/report.html"), ("merged model", MERGED)):
        console.print(f"{title}: {Path(out) / path}", soft_wrap=True)


def _check_folder(out: Path, epochs: int) -> None:
    """Refuse a folder that is neither new nor that of a demo which was stopped.

    Raises:
        OutputError: it holds something else, or a whole demo.
        VituneError: the demo in it has another number of epochs.
    """
    from vitune.files import check_new_folder, is_part

    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    begun = [name for name in LEARNING_RATES if name in names]
    if not begun or any(name not in LEARNING_RATES and not is_part(name) for name in names):
        check_new_folder(out)
    for name in begun:
        folder = _folder(out / name)
        own = folder.read_config().get("epochs") if folder.config.is_file() else epochs
        if own != epochs:
            raise VituneError(
                f"--epochs: got {epochs}, expected {own} as in {str(folder.path)!r}, with which "
                "this demo began. Give that number, or choose another --out."
            )


def _folder(path: Path) -> RunFolder:
    from vitune.runs import RunFolder

    return RunFolder(path)


def _what_is_kept(out: str, epochs: int) -> str:
    runs = [_folder(Path(out) / method) for method in LEARNING_RATES]
    if not any(run.config.is_file() for run in runs):
        return "Nothing was written."
    number = sum(run.summary.is_file() for run in runs)
    kept = "1 run is kept" if number == 1 else f"{number} runs are kept"
    changed = "" if epochs == EPOCHS else f" --epochs {epochs}"
    return f"{kept}. Continue with: vitune demo --out {shlex.quote(out)}{changed}"


def _scored(method: str, path: Path, epochs: int) -> tuple[RunSummary, float]:
    """The run of one method, trained unless it is there already, and its test accuracy."""
    from vitune.cli._progress import console
    from vitune.inference import evaluate_run

    summary = _folder(path).read_summary()
    if summary is None:
        summary = _trained(method, path, epochs)
    else:
        console.print(f"{summary.method_title}: finished before", soft_wrap=True)
    return summary, evaluate_run(str(path))["top1"]


def _trained(method: str, path: Path, epochs: int) -> RunSummary:
    from vitune.cli._progress import TrainingProgress
    from vitune.training.fitting import fit
    from vitune.training.train_config import TrainConfig

    settings = {"data": DATA, "method": method, "epochs": epochs, "refit": True}
    rate = LEARNING_RATES[method]
    plain = {} if rate is None else {"lr": rate, "start": "plain"}
    config = TrainConfig.make({**settings, **plain})
    observer = TrainingProgress()
    try:
        if _folder(path).config.is_file():
            return fit(out=str(path), resume=True, observer=observer).summary
        return fit(config, out=str(path), observer=observer).summary
    finally:
        observer.close()
