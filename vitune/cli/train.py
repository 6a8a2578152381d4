"""vitune train: fine-tune a backbone on a folder of images."""

from __future__ import annotations

import shlex
from typing import Any

import typer

from vitune.cli._settings import read_settings, with_settings
from vitune.errors import InterruptError, VituneError
from vitune.training.train_config import TrainConfig


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("train")(train)


@with_settings(TrainConfig)
def train(
    settings: dict[str, Any],
    out: str = typer.Option(..., "--out", help="run folder; never overwritten"),
    config: str = typer.Option(None, "--config", help="YAML file; options win over it"),
    resume: bool = typer.Option(False, "--resume", help="continue the run in --out"),
    tune: str = typer.Option(
        None, "--tune", help="best within a time, e.g. 20m: methods, rates and epochs are tried"
    ),
    pace_lambda: float = typer.Option(None, "--pace-lambda", help="of --objective pace"),
    pace_sigma: float = typer.Option(None, "--pace-sigma", help="of --objective pace"),
) -> None:
    """Fine-tune a pre-trained Vision Transformer on your images.

    Trains one method on the training images, watches the validation images (held out where you
    give none) and writes a run folder with the adapter and report.html. The test images are not
    looked at: 'vitune evaluate' does that.
    """
    from vitune.cli._closing import closing_lines
    from vitune.cli._progress import TrainingProgress, console, percent
    from vitune.training.fitting import fit
    from vitune.training.train_config import read_yaml

    for name, value in (("pace_lambda", pace_lambda), ("pace_sigma", pace_sigma)):
        if value is not None:
            settings.setdefault("objective_args", {})[name] = value
    observer = TrainingProgress()
    try:
        if tune is not None:
            trained = _tuned(settings, config, out, tune, resume, observer)
        elif resume:
            given = {**(read_yaml(config) if config else {}), **settings}
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
    summary = trained.summary
    reported = summary["reported"]
    console.print(
        f"validation accuracy {percent(reported['val_accuracy'])} "
        f"(epoch {reported['epoch']}, {reported['which']}) in {summary['seconds']:.0f} s"
    )
    for line in closing_lines(summary, out):
        console.print(line, soft_wrap=True)
    console.print(f"report: {out}/report.html", soft_wrap=True)


def _tuned(
    settings: dict[str, Any], config: str | None, out: str, budget: str, resume: bool,
    observer: Any,
) -> Any:  # fmt: skip
    """The result of a search within a time budget; says what it tries as it goes."""
    from pathlib import Path

    from vitune.cli._progress import console
    from vitune.training.tuning import METHODS, Tuning, require_tunable, rungs_of, seconds_of

    given = read_settings(config, settings)
    named = given.model_dump(exclude_unset=True)
    require_tunable(named)
    trained = Tuning(
        given,
        Path(out),
        budget_s=seconds_of(budget),
        methods=(named["method"],) if "method" in named else METHODS,
        rungs=rungs_of(named.get("epochs")),
        observer=observer,
        told=lambda line: console.print(line, soft_wrap=True),
    ).run(resume)
    console.print(f"what was tried: {out}/tune.md", soft_wrap=True)
    return trained


def _what_is_kept(out: str) -> str:
    """What there is of a run that was stopped, and how to go on."""
    from pathlib import Path

    from vitune.runs import RunFolder
    from vitune.training.resume_point import read_progress

    folder = RunFolder(Path(out))
    if not folder.config.is_file():
        return "Nothing was written."
    try:
        progress = read_progress(folder.checkpoint)
    except VituneError:
        progress = None
    done = 0 if progress is None else progress.epoch
    kept = f"{done} epochs are kept" if done != 1 else "1 epoch is kept"
    return f"{kept}. Go on with: vitune train --out {shlex.quote(out)} --resume"
