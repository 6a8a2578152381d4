"""The one training loop: epochs, steps, validation, checkpoints; it never sees a test split."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor

from vitune.backbones import logits_of
from vitune.data import Augment, EpochSampler, Split, batches
from vitune.methods import method_penalty
from vitune.objectives import Step
from vitune.preprocessing import Preprocessing
from vitune.privacy.dp import PrivateStep
from vitune.training.accumulation import Accumulation
from vitune.training.averaging import averager_for
from vitune.training.epoch_start import seed_epoch, training_mode
from vitune.training.inputs import TrainingInputs
from vitune.training.kept_weights import KeptWeights
from vitune.training.last_block import class_tail, lean_training
from vitune.training.loss_watch import LossWatch
from vitune.training.metrics import append_row, keep_epochs, read_epochs
from vitune.training.observer import Observer
from vitune.training.optimiser import new_optimiser, new_schedule
from vitune.training.private import private_parts
from vitune.training.resume_point import (
    Progress,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from vitune.training.train_config import TrainConfig
from vitune.training.training_loss import objective_for
from vitune.training.validating import Seen, scores_on


@dataclass(frozen=True)
class Recipe:
    """Rates, which depend on the method as well as on the settings.

    Args:
        lr: peak learning rate.
        weight_decay: AdamW's weight decay.
        head_lr: peak learning rate of the classifier; None means `lr`.
    """

    lr: float
    weight_decay: float
    head_lr: float | None = None


class Loop:
    """Trains `model` on `train` and validates it on `val`.

    Args:
        metrics_path, checkpoint_path: where metrics.jsonl and checkpoint/ are written; None writes
            nothing.
        keep: called with the number of finished epochs when a snapshot is due; the model then
            holds the weights that would be reported.
        augment: the augmentation; None takes the one that `config` names.
        has_start, known_share: see `KeptWeights`.
    """

    def __init__(
        self,
        model: PeftModel,
        train: Split,
        val: Split | None,
        preprocessing: Preprocessing,
        config: TrainConfig,
        recipe: Recipe,
        accelerator: Accelerator,
        observer: Observer,
        metrics_path: Path | None = None,
        checkpoint_path: Path | None = None,
        keep: Callable[[int], None] | None = None,
        augment: Augment | None = None,
        has_start: bool = False,
        known_share: float | None = None,
    ) -> None:
        self.keep, self.config, self.observer = keep, config, observer
        self.val, self.preprocessing, self.accelerator = val, preprocessing, accelerator
        self.metrics_path, self.checkpoint_path = metrics_path, checkpoint_path
        self.progress = Progress()
        self.seen: Seen | None = None
        self.model = model.to(accelerator.device)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.kept = KeptWeights(
            self.parameters, config, has_start=has_start, known_share=known_share,
            groups=None if val is None else val.groups,
        )  # fmt: skip
        self.inputs = TrainingInputs(train, preprocessing, config, accelerator, augment)
        self.objective = objective_for(model, config)
        self.tail = class_tail(model) if config.lean else ()
        self.sampler = EpochSampler(len(train), seed=config.seed)
        loader = batches(
            train,
            config.batch_size,
            sampler=self.sampler,
            drop_last=config.drop_last,
            pin_memory=accelerator.device.type == "cuda",
        )
        optimiser = new_optimiser(
            model,
            recipe.lr,
            recipe.weight_decay,
            kind=config.optimiser,
            momentum=config.momentum,
            decay_rule=config.decay_rule,
            head_lr=recipe.head_lr,
        )
        self.raw_optimiser = optimiser
        self.wrapped, self.optimiser, self.loader = accelerator.prepare(model, optimiser, loader)
        self.private: PrivateStep | None = None
        if config.dp_epsilon is not None:
            self.loader, self.private = private_parts(
                model, train, optimiser, config, accelerator, preprocessing.image_size
            )
        self.steps_per_epoch = math.ceil(len(self.loader) / config.accumulation_steps)
        self.accumulation = Accumulation(
            config.accumulation_steps,
            len(self.loader),
            config.batch_size,
            len(train) if accelerator.num_processes == 1 else None,  # several fill up the last
        )
        self.averager = averager_for(self.parameters, config, self.steps_per_epoch, val is not None)
        self.schedule = new_schedule(
            optimiser,
            num_steps=self.steps_per_epoch * config.epochs,
            warmup_steps=round(self.steps_per_epoch * config.resolved_warmup_epochs),
            min_lr=config.min_lr,
            warmup_lr=config.warmup_lr,
        )

    def run(self) -> None:
        """Train the remaining epochs; the model then holds the selected weights.

        Raises:
            TrainingError: the loss became non-finite; the last checkpoint is untouched.
        """
        if self.metrics_path is not None and self.accelerator.is_main_process:
            keep_epochs(self.metrics_path, self.progress.epoch)
        if self.progress.epoch == 0:
            self._snapshot(0)
            self._see_start()
        self.observer.started(self)
        while self.progress.epoch < self.config.epochs and not self.kept.is_stale(self.progress):
            row = self._epoch(self.progress.epoch)
            self.observer.epoch_ended(row)
        self._select()

    @property
    def reported_epoch(self) -> int:
        """The epoch whose weights the model holds after `run`, perhaps mixed with the first."""
        return self.kept.reported_epoch(self.progress)

    @property
    def share(self) -> float | None:
        """How far these weights are from the first ones, in [0, 1]; None if they were not mixed."""
        return self.kept.share

    @property
    def reported_accuracy(self) -> float | None:
        """Validation accuracy of these weights; None without a validation split."""
        if self.val is None:
            return None
        if self.kept.was_scored and self.seen is not None:
            logits, labels = self.seen
            return (logits.argmax(1) == labels).float().mean().item()
        return self.progress.accuracies.get(str(self.reported_epoch), self.progress.val_accuracy)

    def reported_logits(self) -> tuple[Tensor, Tensor] | None:
        """Validation logits (n, c) of the weights in the model, with labels (n,).

        The last epoch's are at hand; an earlier epoch's are computed again.
        """
        if self.val is None:
            return None
        is_latest = self.reported_epoch == self.progress.epoch and self.seen is not None
        if not self.kept.was_scored and not is_latest:
            self.evaluate(self.val)
        return self.seen

    def scored_weights(self) -> AbstractContextManager[None]:
        """Within: the model holds the weights that are scored, with `ema` the averages."""
        return self.averager.applied() if self.averager and self.config.ema else nullcontext()

    def evaluate(self, split: Split) -> tuple[float, float]:
        """(mean cross-entropy, accuracy) on `split`, every process taking its share."""
        scores = scores_on(split, self.model, self.preprocessing, self.accelerator, self.tail)
        self.seen = scores.seen
        return scores.loss, scores.accuracy

    def _see_start(self) -> None:
        """Score the weights before the first step, if they may be reported."""
        if self.kept.keep_start(has_val=self.val is not None) and self.val is not None:
            _, self.progress.accuracies["0"] = self.evaluate(self.val)
            self._watch(0)

    def _watch(self, epoch: int) -> None:
        if self.seen is not None:
            recent = None if self.averager is None or self.config.ema else self.averager.averages
            self.kept.saw(epoch, self.seen, recent)

    def _epoch(self, epoch: int) -> dict[str, Any]:
        """One pass over the training images, then validation and the checkpoint."""
        started, own_started = time.perf_counter(), time.process_time()
        train_loss, num_images = self._train(epoch)
        train_seconds = time.perf_counter() - started
        train_cpu_seconds = time.process_time() - own_started
        self.progress.epoch = epoch + 1
        val_loss, val_accuracy = self._validate()
        self.progress.val_accuracy = val_accuracy
        self.progress.seconds += time.perf_counter() - started
        self.progress.cpu_seconds += time.process_time() - own_started
        self._snapshot(epoch + 1)
        row = {
            "epoch": epoch + 1,
            "step": self.progress.step,
            "train_loss": train_loss,
            "lr": self.raw_optimiser.param_groups[0]["lr"],
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "images_per_s": num_images / train_seconds,
            "train_seconds": train_seconds,
            "train_cpu_seconds": train_cpu_seconds,
            "seconds": self.progress.seconds,
        }
        # In this order: a run that is killed between the two does the epoch again.
        if self.metrics_path is not None and self.accelerator.is_main_process:
            append_row(self.metrics_path, row)
        self._save(epoch + 1)
        return row

    def _train(self, epoch: int) -> tuple[float, int]:
        """One pass over the training images; returns the mean batch loss and the images seen."""
        self.loader.set_epoch(epoch)
        seed_epoch(self.config.seed, epoch, self.accelerator.process_index)
        training_mode(self.wrapped)
        watch = LossWatch(self.accelerator.device)
        total_loss, latest, num_images, num_batches = 0.0, math.nan, 0, 0
        for index, batch in enumerate(self.loader):
            for latest in self._step(batch, index, epoch, watch):
                total_loss += latest
            num_batches = index + 1
            num_images += len(batch["labels"]) * self.accelerator.num_processes
            self.observer.stepped(self.progress.step, latest, num_images)
        total_loss += sum(watch.rest())
        return total_loss / num_batches, num_images

    def _validate(self) -> tuple[float | None, float | None]:
        """(loss, accuracy) of the epoch just trained; None without validation images."""
        if self.val is None:
            return None, None
        with self.scored_weights():
            loss, accuracy = self.evaluate(self.val)
            self.kept.scored(self.progress, accuracy)
            self.progress.accuracies[str(self.progress.epoch)] = accuracy
            self._watch(self.progress.epoch)
        return loss, accuracy

    def _step(
        self, batch: dict[str, Tensor], index: int, epoch: int, watch: LossWatch
    ) -> Iterable[float]:
        """Forward, backward and, after enough batches, the update; returns the losses now due."""
        self.schedule.step_update(self.progress.step)
        if self.private is not None:
            loss = self._private_step(self.private, batch, index, epoch)
            return list(watch.add(loss, self.progress.step, epoch + 1))
        with self.accelerator.accumulate(self.wrapped), self._lean_step():
            images, targets = self.inputs(batch, index, epoch)
            with self.accelerator.autocast():
                losses = self.objective(self.wrapped, images, targets, self._circumstances(batch))
            loss = torch.stack([part.float() for part in losses.values()]).sum()
            due = list(watch.add(loss, self.progress.step + 1, epoch + 1))
            self.accelerator.backward(loss * self.accumulation.weight(index, len(images)))
            if self.accelerator.sync_gradients:
                if self.config.clip_grad:
                    self.accelerator.clip_grad_norm_(
                        list(self.parameters.values()), self.config.clip_grad
                    )
                self.progress.step += 1
            self.optimiser.step()
            self.optimiser.zero_grad()
            if self.averager and self.accelerator.sync_gradients:
                self.averager.update()
        return due

    def _private_step(
        self, private: PrivateStep, batch: dict[str, Tensor], index: int, epoch: int
    ) -> Tensor:
        """A step on a Poisson batch; an empty batch still adds noise."""
        images, targets = batch["images"].float(), batch["labels"]
        if len(targets):
            images, targets = self.inputs(batch, index, epoch)
        with self._lean_step() if private.gradients.is_closed else nullcontext():
            loss = private(images, targets)
        self.progress.step += 1
        if self.averager:
            self.averager.update()
        return torch.tensor(loss)

    def _lean_step(self) -> AbstractContextManager[None]:
        """`lean_training` if it is on: the same gradients with less memory and work."""
        if not self.config.lean:
            return nullcontext()
        return lean_training(self.tail, checkpointing=self.config.checkpointing)

    def _circumstances(self, batch: dict[str, Tensor]) -> Step:
        """What the objective learns about this step, beside images and labels."""
        return Step(
            number=self.progress.step,
            progress=self.progress.step / max(1, self.steps_per_epoch * self.config.epochs),
            indices=batch["indices"],
            logits=logits_of,
            penalty=partial(method_penalty, self.model),
        )

    def _select(self) -> None:
        """Put the weights to report into the model."""
        averages = self.averager.averages if self.averager and self.config.ema else None
        val = self.val
        score = None if val is None else partial(self._seen_on, val)
        self.seen = self.kept.select(self.progress, averages, score) or self.seen

    def _seen_on(self, val: Split) -> Seen:
        self.evaluate(val)
        assert self.seen is not None
        return self.seen

    def _save(self, epoch: int) -> None:
        due = epoch % self.config.checkpoint_every_epochs == 0 or self._is_last(epoch)
        if self.checkpoint_path is None or not due or not self.accelerator.is_main_process:
            return
        if self.averager is not None:
            self.progress.num_averaged = self.averager.num_updates
        if self.private is not None:
            self.progress.accountant = list(self.private.budget.spent)
        scaler = self.accelerator.scaler
        self.progress.scaler = {} if scaler is None else scaler.state_dict()
        self.progress.watched = [self.kept.watch.best_epoch, self.kept.watch.epoch]
        average = self.averager.averages if self.averager else {}
        extra = {"average": average, **self.kept.tensors()}
        save_checkpoint(
            self.checkpoint_path, self.progress, self.parameters, self.raw_optimiser, extra
        )

    def _is_last(self, epoch: int) -> bool:
        return epoch == self.config.epochs or self.kept.is_stale(self.progress)

    def _snapshot(self, epoch: int) -> None:
        """Call `keep` when a snapshot is due: every few epochs, and after the last."""
        every = self.config.snapshot_every_epochs
        if self.keep is None or not every or (epoch % every and not self._is_last(epoch)):
            return
        if self.accelerator.is_main_process:
            with self.scored_weights():
                self.keep(epoch)

    def restore(self) -> None:
        """Continue from the checkpoint, or from the start if there is none; writes nothing.

        Raises:
            AdapterError: the checkpoint or the list of epochs is damaged.
        """
        if self.metrics_path is not None:
            read_epochs(self.metrics_path)
        if self.checkpoint_path is not None and has_checkpoint(self.checkpoint_path):
            self._restore(self.checkpoint_path)

    def _restore(self, checkpoint_path: Path) -> None:
        self.progress, groups = load_checkpoint(
            checkpoint_path, self.parameters, self.raw_optimiser
        )
        if self.private is not None:
            self.private.budget.spent = list(self.progress.accountant)
        self.kept.restore(self.progress, groups, self.accelerator.device)
        if self.averager is not None:
            self.averager.restore(groups.get("average", {}), self.progress.num_averaged)
        if self.accelerator.scaler is not None and self.progress.scaler:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
