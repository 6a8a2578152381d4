"""`fit`: from a configuration to a finished run folder."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState

from vitune.data import Splits
from vitune.errors import VituneError
from vitune.methods import get_method
from vitune.ops import usual_modes
from vitune.runs import RunFolder
from vitune.training.ingredients import ingredients_of
from vitune.training.job import Job, Known
from vitune.training.keeping import Trained
from vitune.training.observer import Observer
from vitune.training.placement import cpu_threads, main_first, runs_on_cpu
from vitune.training.probing import Probe
from vitune.training.settling import backbone_notice, new_settings, resumed_record
from vitune.training.solved_run import solved_run
from vitune.training.stepped_run import stepped_run
from vitune.training.train_config import TrainConfig


def fit(
    config: TrainConfig | None = None,
    *,
    out: str | Path | RunFolder | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    splits: Splits | None = None,
    probe: Probe | None = None,
    temperature: float | None = None,
    share: float | None = None,
    **settings: Any,
) -> Trained:
    """Train one method on one data source and keep the result in a run folder.

    Only training and validation images are read; `vitune evaluate` opens a test split. The run
    folder appears when the first step can run; a start that fails leaves nothing behind. The
    settings alone say how it computes: inference mode, autocast and a default number format
    around the call have no effect.

    Args:
        config: the settings; or pass them as keywords, e.g. `fit(data="photos/", epochs=20)`.
        out: a new folder for the run; None writes nothing.
        resume: continue the run in `out` from its checkpoint with its own settings.
        observer: receives progress.
        splits: decoded images of `config.data`, shared by several runs. The run trains on `train`
            and validates on `val`, whatever the config says about hold-out or refit.
        probe: a probe already solved on these splits, so that several runs can share it.
        temperature: stored with the run if there are no validation images to fit one on.
        share: how far to move from the probe to the trained weights if there are none.

    Raises:
        VituneError: unusable settings, data or backbone; the message names the remedy.
        OutputError: `out` is not empty, or another process writes to it.
        TrainingError: the loss became non-finite; the last checkpoint is kept.
        OSError: a full disk, for example; what was saved before is intact.
    """
    if not isinstance(config, TrainConfig | None):
        raise VituneError(
            f"fit: got {config!r}, expected a TrainConfig, or keywords: fit(data='photos/')."
        )
    if resume and out is None:
        raise VituneError("resume: got no folder, expected out= with the run to continue.")
    folder = out if isinstance(out, RunFolder) or out is None else RunFolder(Path(out))
    record = None
    if resume and folder is not None:
        record = resumed_record(folder.path, config, settings)
        asked, notice = record.settings, backbone_notice(record.settings)
    else:
        asked, notice = new_settings(config, settings)
    process = PartialState(cpu=runs_on_cpu(asked))
    observer = (observer or Observer()) if process.is_main_process else Observer()
    known = Known(probe, temperature, share, notice)
    with ExitStack() as held, usual_modes():
        if folder is not None:
            main_first(process, partial(_claim, folder, process, held, is_new=record is None))
        held.enter_context(cpu_threads(None if record is None else record.resolved.threads))
        job = Job(asked, record, folder, process, observer, held, known)
        made = ingredients_of(job, splits)
        if get_method(asked.method).solved:
            return solved_run(job, made)
        return stepped_run(job, made)


def _claim(folder: RunFolder, process: PartialState, held: ExitStack, *, is_new: bool) -> None:
    """Refuse a folder that is no new one, or hold the one that is continued: the main process."""
    if not process.is_main_process:
        return
    if is_new:
        folder.check_new()
    else:
        held.enter_context(folder.held())
