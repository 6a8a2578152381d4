"""One call of `fit`: what was asked for, where it is kept, and what a resumed run's record says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from vitune.backbones import Backbone
from vitune.data import Augment, UsedImages, augmentation
from vitune.environment import Environment
from vitune.errors import VituneError
from vitune.runs import RunFolder
from vitune.training.observer import Observer
from vitune.training.probing import Probe
from vitune.training.record import Resolved, RunRecord, Start, identity_of, plain_fields
from vitune.training.resume_point import has_checkpoint, read_progress
from vitune.training.resuming import (
    require_same_images,
    require_same_weights,
    warn_of_other_software,
)
from vitune.training.train_config import TrainConfig
from vitune.training.training_loss import objective_of


@dataclass(frozen=True)
class Known:
    """What the caller of `fit` knows before the run starts.

    Args:
        probe, temperature, share: as `fit` takes them.
        notice: what the user should know of the backbone; '' for nothing.
    """

    probe: Probe | None
    temperature: float | None
    share: float | None
    notice: str


@dataclass(frozen=True)
class Job:
    """A run to make, new or continued.

    Args:
        asked: its settings; those of a new run are not filled in yet.
        record: the record of the run to continue; None for a new one.
        folder: where the run is kept; None keeps nothing.
        held: what must be released at the end.
        known: what the caller found out already.
    """

    asked: TrainConfig
    record: RunRecord | None
    folder: RunFolder | None
    process: PartialState
    observer: Observer
    held: ExitStack
    known: Known

    @property
    def path(self) -> Path | None:
        """The run folder; None where nothing is kept."""
        return None if self.folder is None else self.folder.path

    def objective(self) -> dict[str, Any]:
        """Every argument of the training loss; an impossible one is refused before any work."""
        if self.record is not None:
            return self.record.resolved.objective
        return plain_fields(objective_of(self.asked))

    def augment(self, backbone: Backbone, settings: TrainConfig | None = None) -> Augment:
        """The augmentation of the run, or of `settings` once nothing in them is open."""
        if self.record is not None:
            return self.record.resolved.augmentation
        return augmentation((settings or self.asked).augment, backbone.preprocessing.image_size)

    def check_images(self, images: UsedImages) -> None:
        """Refuse to continue a run with other images; AdapterError names them."""
        if self.record is not None and self.folder is not None:
            require_same_images(self.folder, images)

    def resolved(self, now: Resolved) -> Resolved:
        """What the run computes with: `now` for a new run, else its record, which must agree."""
        if self.record is None:
            return now
        require_same_weights(now, self.record.resolved)
        return self.record.resolved

    def identity(self, settings: TrainConfig, resolved: Resolved, images: UsedImages) -> str:
        """What the run's checkpoints are known by."""
        if self.record is None:
            return identity_of(settings, resolved, images)
        return self.record.identity

    @contextmanager
    def kept(self, settings: TrainConfig, resolved: Resolved, images: UsedImages) -> Iterator[None]:
        """Within: the folder describes the run. A new run that fails at once leaves no folder."""
        if self.folder is None or not self.process.is_main_process:
            yield
            return
        starts = () if self.record is None else self.record.starts
        if self.record is None:
            self.held.enter_context(self.folder.begun())
        progress = read_progress(self.folder.checkpoint)
        epoch = 0 if progress is None else progress.epoch
        start = Start(after_epoch=epoch, environment=Environment.here())
        warn_of_other_software(starts, start)
        identity = self.identity(settings, resolved, images)
        RunRecord(settings, resolved, (*starts, start), identity).write(self.folder.config)
        images.write(self.folder.images)
        try:
            yield
        except (VituneError, RuntimeError, MemoryError):
            if self.record is None and not has_checkpoint(self.folder.checkpoint):
                self.folder.forget()
            raise
