"""vitune train: fine-tune a backbone on a folder of images."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vitune.cli._options import OUTPUT, TRAINING
from vitune.cli._plugins import with_plugins
from vitune.cli._settings import read_settings, with_settings
from vitune.errors import InterruptError, VituneError
from vitune.late_imports import uncollected
from vitune.training.train_config import TrainConfig

if TYPE_CHECKING:
    from vitune.runs import RunSummary
    from vitune.training import Tuning


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("train")(train)


@with_plugins
@with_settings(TrainConfig)
def train(
    settings: dict[str, Any],
    out: str = typer.Option(..., "--out", help="new run folder", rich_help_panel=OUTPUT),
    config: str = typer.Option(
        None, "--config", help="YAML file; options override it", rich_help_panel=TRAINING
    ),
    resume: bool = typer.Option(
        False, "--resume", help="continue the run in --out", rich_help_panel=OUTPUT
    ),
    tune: str = typer.Option(
        None,
        "--tune",
        help="find the best method, rate and epochs within a time limit, e.g. 20m",
        rich_help_panel=TRAINING,
    ),
) -> None:
    """Fine-tune a pre-trained Vision Transformer on your images.

    Trains one method on the training images, scores the validation images after every epoch (held
    out if you give none) and writes a run folder with the adapter and report.html. The test images
    are never opened: 'vitune evaluate' does that.
    """
    from vitune.cli._progress import TrainingProgress
    from vitune.training.train_config import read_yaml

    with uncollected():
        import torch

        from vitune.training.attempt_log import AttemptLog
        from vitune.training.fitting import fit

    observer = TrainingProgress()
    try:
        given = {**(read_yaml(config) if config and resume else {}), **settings}
        if resume and (tune is not None or AttemptLog(Path(out)).exists()):
            trained = _tuned_on(given, out, tune, observer)
        elif tune is not None:
            trained = _tuned(settings, config, out, tune, observer)
        elif resume:
            trained = fit(None, out=out, resume=True, observer=observer, **given)
        else:
            trained = fit(read_settings(config, settings), out=out, observer=observer)
    except KeyboardInterrupt:
        raise InterruptError(f"stopped. {_what_is_kept(out)}") from None
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise VituneError(f"{error.strerror or error}{where}. {_what_is_kept(out)}") from None
    finally:
        observer.close()
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        _close(trained.summary, out)


def _close(summary: RunSummary, out: str) -> None:
    """Print what came of the run."""
    from vitune.cli._progress import console, percent
    from vitune.report import closing_lines

    reported = summary.reported
    if reported.val_accuracy is None:
        console.print(f"trained in {summary.seconds:.0f} s, without validation images")
    else:
        console.print(
            f"validation accuracy {percent(reported.val_accuracy)}{_whose(summary)} "
            f"in {summary.seconds:.0f} s"
        )
    if summary.privacy is not None:
        spent = summary.privacy
        console.print(
            f"differential privacy: epsilon {spent.epsilon:.3g} at delta {spent.delta:g}, "
            f"{spent.steps:,} steps at sampling rate {spent.sample_rate:.4g}; trial runs "
            "spent a budget of their own",
            soft_wrap=True,
        )
    for line in closing_lines(summary, out):
        console.print(line, soft_wrap=True)
    console.print(f"report: {out}/report.html", soft_wrap=True)


def _whose(summary: RunSummary) -> str:
    """Which weights the accuracy is of; '' for a method that takes no steps."""
    epoch, share = summary.reported.epoch, summary.share
    if summary.solved is not None:
        return ""
    if not epoch or summary.chosen == "probe":
        return " (the solved probe)"
    which = f"average over epoch {epoch}" if summary.reported.averaged else f"epoch {epoch}"
    return f" ({which})" if share in (None, 1.0) else f" ({which} and the probe mixed)"


def _tuned(
    settings: dict[str, Any], config: str | None, out: str, budget: str, observer: Any
) -> Any:
    """The result of a search within a time budget; prints what it tries."""
    from vitune.training import Tuning

    asked = read_settings(config, settings)
    search = Tuning.within(budget, asked, out, observer=observer, told=_told)
    if search.notice:
        _told(search.notice)
    return _searched(search, out)


def _tuned_on(given: dict[str, Any], out: str, budget: str | None, observer: Any) -> Any:
    """The result of a search that was stopped and goes on now."""
    from vitune.training import Tuning

    search = Tuning.resumed(out, given, budget, observer=observer, told=_told)
    return _searched(search, out, resume=True)


def _searched(search: Tuning, out: str, *, resume: bool = False) -> Any:
    """The result of the search; prints what it chose."""
    trained = search.run(resume)
    _told(f"{search.log.outcome()}; then trained on training and validation together")
    _told(f"what was tried: {out}/tune.md")
    return trained


def _told(line: str) -> None:
    from vitune.cli._progress import console

    console.print(line, soft_wrap=True)


def _what_is_kept(out: str) -> str:
    """What is kept of a run that was stopped, and how to continue it."""
    from vitune.runs import RunFolder
    from vitune.training.attempt_log import AttemptLog
    from vitune.training.resume_point import read_progress

    folder, search = RunFolder(Path(out)), AttemptLog(Path(out))
    again = f"Continue with: vitune train --out {shlex.quote(out)} --resume"
    if not folder.config.is_file() and search.exists():
        number = search.num_kept()
        kept = "1 run of the search is" if number == 1 else f"{number} runs of the search are"
        return f"{kept} kept. {again}"
    if not folder.config.is_file():
        return "Nothing was written."
    try:
        progress = read_progress(folder.checkpoint)
    except VituneError:
        progress = None
    done = 0 if progress is None else progress.epoch
    kept = f"{done} epochs are kept" if done != 1 else "1 epoch is kept"
    return f"{kept}. {again}"
