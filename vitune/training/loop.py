"""The one training loop: epochs, steps, validation, checkpoints; it never sees a test split."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.backbones import logits_of
from vitune.data import Augment, CachedImages, EpochSampler, Split, batches, normalise
from vitune.methods import MethodLayer, method_penalty, noise_plan
from vitune.objectives import Objective, Step, new_objective
from vitune.ops import calibrated_losses, first_token_only
from vitune.preprocessing import Preprocessing
from vitune.privacy.dp import PrivateStep
from vitune.training.averaging import Averager
from vitune.training.inputs import TrainingInputs
from vitune.training.last_block import class_tail, lean_training
from vitune.training.loss_watch import LossWatch
from vitune.training.metrics import append_row, keep_epochs, read_epochs
from vitune.training.mixing import SHARES, chosen_share, mixed
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
from vitune.training.watching import Watch

EVAL_BATCH = 128
"""Images validated at a time: enough for a GPU, and activations that a CPU's caches still hold."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a run that only the method or the machine can tell.

    Args:
        lr: peak learning rate.
        weight_decay: AdamW's.
        head_lr: peak learning rate of the classifier; None is `lr`.
    """

    lr: float
    weight_decay: float
    head_lr: float | None = None


class Loop:
    """Trains `model` on `train`, watching `val`.

    Args:
        metrics_path, checkpoint_path: where metrics.jsonl and checkpoint/ are written; None writes
            nothing.
        keep: is told the number of epochs done wherever a snapshot is due, while the model has the
            weights that would be reported then.
        augment: the augmentation; None is the one that `config` names.
        has_start: whether the classifier starts at more than zeros, so that the weights before the
            first step are a candidate for what is reported.
        known_share: how far to go from there where no validation tells; None is the whole way.
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
        self.keep, self.has_start, self.known_share = keep, has_start, known_share
        self.config, self.recipe, self.observer = config, recipe, observer
        self.val, self.preprocessing, self.accelerator = val, preprocessing, accelerator
        self.metrics_path, self.checkpoint_path = metrics_path, checkpoint_path
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.first: dict[str, Tensor] = {}
        self.share: float | None = None
        self.watch = Watch.over(config.epochs)
        self.seen: tuple[Tensor, Tensor] | None = None
        self.model = model.to(accelerator.device)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.averager = None
        if config.ema:
            self.averager = Averager(self.parameters, config.ema, ramp=config.ema_ramp)
        self.inputs = TrainingInputs(train, preprocessing, config, accelerator, augment)
        self.objective = self._new_objective()
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
            self.loader, self.private = private_parts(model, train, optimiser, config, accelerator)
        self.steps_per_epoch = math.ceil(len(self.loader) / config.accumulation_steps)
        self.schedule = new_schedule(
            optimiser,
            num_steps=self.steps_per_epoch * config.epochs,
            warmup_steps=round(self.steps_per_epoch * config.resolved_warmup_epochs),
            min_lr=config.min_lr,
            warmup_lr=config.warmup_lr,
        )

    def run(self) -> None:
        """All epochs that are still to come; leaves the selected weights in the model.

        Raises:
            TrainingError: the loss is no longer finite; the last checkpoint is untouched.
        """
        if self.metrics_path is not None and self.accelerator.is_main_process:
            keep_epochs(self.metrics_path, self.progress.epoch)
        if self.progress.epoch == 0:
            self._keep(0)
            self._see_start()
        self.observer.started(self)
        while self.progress.epoch < self.config.epochs and not self._is_stale():
            row = self._epoch(self.progress.epoch)
            self.observer.epoch_ended(row)
        self._select()

    @property
    def reported_epoch(self) -> int:
        """The epoch whose weights the model carries after `run`, perhaps mixed with the first."""
        if self.share == 0:
            return 0
        if self.config.select == "auto" and self.watch.epoch >= 0:
            return self.watch.kept_epoch or self.progress.epoch
        use_best = self.config.select == "best" and self.progress.best_epoch
        return self.progress.best_epoch if use_best else self.progress.epoch

    @property
    def reported_accuracy(self) -> float | None:
        """Validation accuracy of that epoch; None without a validation split."""
        if self.val is None:
            return None
        if self.share is not None and self.seen is not None:
            logits, labels = self.seen
            return (logits.argmax(1) == labels).float().mean().item()
        return self.progress.accuracies.get(str(self.reported_epoch), self.progress.val_accuracy)

    def reported_logits(self) -> tuple[Tensor, Tensor] | None:
        """Validation logits (n, c) of the weights that the model carries, with labels (n,).

        Those of the last epoch are known; an earlier one's are computed again.
        """
        if self.val is None:
            return None
        is_latest = self.reported_epoch == self.progress.epoch and self.seen is not None
        if self.share is None and not is_latest:
            self.evaluate(self.val)
        return self.seen

    def scored_weights(self) -> AbstractContextManager[None]:
        """Within: the model carries the weights that are scored, the averages where there are."""
        return self.averager.applied() if self.averager else nullcontext()

    def evaluate(self, split: Split) -> tuple[float, float]:
        """(mean cross-entropy, accuracy) on `split`, every process taking its share."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        indices = np.arange(rank, len(split), world)
        images = CachedImages(split)
        totals = torch.zeros(3, dtype=torch.float64)
        seen = []
        with inference_weights(self.model), first_token_only(*self.tail):
            for start in range(0, len(indices), EVAL_BATCH):
                batch = images.__getitems__(indices[start : start + EVAL_BATCH].tolist())
                logits = self._logits(self.model, self._inputs(batch["images"])).float()
                labels = batch["labels"].to(logits.device)
                seen.append((logits.cpu(), batch["labels"]))
                loss = F.cross_entropy(logits, labels, reduction="sum")
                correct = (logits.argmax(-1) == labels).sum()
                totals += torch.tensor([loss.item(), correct.item(), len(labels)])
        self.seen = self._gathered(seen, indices)
        if world > 1:
            totals = self.accelerator.reduce(totals.to(self.accelerator.device)).cpu()
        return (totals[0] / totals[2]).item(), (totals[1] / totals[2]).item()

    def _gathered(
        self, seen: list[tuple[Tensor, Tensor]], indices: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Logits and labels of a split in its order, from every process."""
        classes = next((logits.shape[1] for logits, _ in seen), 0)
        logits = torch.cat([torch.zeros(0, classes), *(part for part, _ in seen)])
        labels = torch.cat([torch.zeros(0, dtype=torch.int64), *(part for _, part in seen)])
        if self.accelerator.num_processes == 1:
            return logits, labels
        parts = gather_object([(indices, logits.numpy(), labels.numpy())])
        order = np.argsort(np.concatenate([part[0] for part in parts]))
        whole = np.concatenate([part[1] for part in parts if len(part[1])])
        return (
            torch.from_numpy(whole[order]),
            torch.from_numpy(np.concatenate([part[2] for part in parts])[order]),
        )

    def _see_start(self) -> None:
        """The weights before the first step are a candidate where they are more than chance."""
        can_choose = self.val is not None or self.known_share is not None
        if not can_choose or self.config.select != "auto" or not self.has_start:
            return
        self.first = {n: p.detach().clone() for n, p in self.parameters.items()}
        if self.val is not None:
            _, accuracy = self.evaluate(self.val)
            self.progress.accuracies["0"] = accuracy
            self._watch_epoch(0)

    def _watch_epoch(self, epoch: int) -> None:
        """Tell the watch of the latest validation, and keep the weights if it is the best."""
        has_seen = self.seen is not None and len(self.seen[1]) > 0
        if self.config.select != "auto" or not has_seen:
            return
        assert self.seen is not None
        if self.watch.saw(epoch, *self.seen):
            self.best = {n: p.detach().clone() for n, p in self.parameters.items()}

    def _epoch(self, epoch: int) -> dict[str, Any]:
        """One pass over the training images, then validation and the checkpoint."""
        started, own_started = time.perf_counter(), time.process_time()
        self._seed(epoch)
        self._training_mode()
        watch = LossWatch(self.accelerator.device)
        total_loss, latest, num_images, num_batches = 0.0, math.nan, 0, 0
        for index, batch in enumerate(self.loader):
            for latest in self._step(batch, index, epoch, watch):
                total_loss += latest
            num_batches = index + 1
            num_images += len(batch["labels"]) * self.accelerator.num_processes
            self.observer.stepped(self.progress.step, latest, num_images)
        total_loss += sum(watch.rest())
        train_seconds = time.perf_counter() - started
        train_cpu_seconds = time.process_time() - own_started
        self.progress.epoch = epoch + 1
        val_loss = val_accuracy = None
        if self.val is not None:
            with self.scored_weights():
                val_loss, val_accuracy = self.evaluate(self.val)
                self._keep_best(val_accuracy)
                self.progress.accuracies[str(epoch + 1)] = val_accuracy
                self._watch_epoch(epoch + 1)
        self.progress.val_accuracy = val_accuracy
        self.progress.seconds += time.perf_counter() - started
        self.progress.cpu_seconds += time.process_time() - own_started
        self._keep(epoch + 1)
        row = {
            "epoch": epoch + 1,
            "step": self.progress.step,
            "train_loss": total_loss / num_batches,
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

    def _step(
        self, batch: dict[str, Tensor], index: int, epoch: int, watch: LossWatch
    ) -> Iterable[float]:
        """Forward, backward and, when enough batches are in, the update; the losses now due."""
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
            self.accelerator.backward(loss)
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
        """A step on a Poisson batch, which may be empty: its noise counts all the same."""
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
        """`lean_training` where it was asked for; the same gradients with less kept and done."""
        if not self.config.lean:
            return nullcontext()
        return lean_training(self.tail, checkpointing=self.config.checkpointing)

    def _circumstances(self, batch: dict[str, Tensor]) -> Step:
        """What the objective is told of this step beside images and labels."""
        return Step(
            number=self.progress.step,
            progress=self.progress.step / max(1, self.steps_per_epoch * self.config.epochs),
            indices=batch["indices"],
            logits=logits_of,
            penalty=partial(method_penalty, self.model),
        )

    def _new_objective(self) -> Objective:
        """The training loss, refused before the first step where the method cannot have it."""
        config = self.config
        given = {
            name: yaml.safe_load(value) if isinstance(value, str) else value
            for name, value in config.objective_args.items()
        }
        objective = new_objective(
            config.objective, {"label_smoothing": config.label_smoothing, **given}
        )
        objective.prepare(noise_plan(self.model) if objective.needs_noise_plan else None)
        return objective

    def _inputs(self, images: Tensor) -> Tensor:
        return normalise(images, self.preprocessing, device=self.accelerator.device)

    def _logits(self, model: nn.Module, images: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return logits_of(model(images))

    def _training_mode(self) -> None:
        """Training mode, except that batch norms keep their pre-trained statistics."""
        self.wrapped.train()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def _seed(self, epoch: int) -> None:
        """All random streams of an epoch are a function of (seed, epoch, process): resumable."""
        self.loader.set_epoch(epoch)
        entropy = (self.config.seed, epoch, self.accelerator.process_index)
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    def _keep_best(self, accuracy: float) -> None:
        self.progress.stale_epochs += 1
        if accuracy > self.progress.best_accuracy:
            self.progress.best_accuracy = accuracy
            self.progress.best_epoch = self.progress.epoch
            self.progress.stale_epochs = 0
            if self.config.select == "best":
                self.best = {n: p.detach().clone() for n, p in self.parameters.items()}

    def _is_stale(self) -> bool:
        patience = self.config.patience
        if patience is None and self.config.select == "auto":
            return self.watch.has_turned
        return patience is not None and self.progress.stale_epochs >= patience

    @torch.no_grad()
    def _select(self) -> None:
        """Put the weights of the reported epoch into the model."""
        source: dict[str, Tensor] = {}
        kept = self.reported_epoch
        if kept != self.progress.epoch and self.best:
            source = self.best
        elif self.averager is not None:
            source = self.averager.averages
        self._put(source)
        if self.first and self.val is not None:
            self._mix(self.val)
        elif self.first and self.known_share is not None:
            trained = {n: p.detach().clone() for n, p in self.parameters.items()}
            self.share = self.known_share
            self._put(mixed(self.first, trained, self.share))

    def _mix(self, val: Split) -> None:
        """Go back towards the probe as far as validation asks for."""
        trained = {n: p.detach().clone() for n, p in self.parameters.items()}
        seen = []
        for share in SHARES:
            self._put(mixed(self.first, trained, share))
            self.evaluate(val)
            assert self.seen is not None
            seen.append(self.seen)
        self.share = chosen_share([calibrated_losses(*found) for found in seen])
        self._put(mixed(self.first, trained, self.share))
        self.seen = seen[SHARES.index(self.share)]

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        """Write weights into the model."""
        for name, value in weights.items():
            self.parameters[name].copy_(value)

    def _save(self, epoch: int) -> None:
        is_last = epoch == self.config.epochs or self._is_stale()
        due = epoch % self.config.checkpoint_every_epochs == 0 or is_last
        if self.checkpoint_path is None or not due or not self.accelerator.is_main_process:
            return
        if self.averager is not None:
            self.progress.num_averaged = self.averager.num_updates
        if self.private is not None:
            self.progress.accountant = list(self.private.budget.spent)
        scaler = self.accelerator.scaler
        self.progress.scaler = {} if scaler is None else scaler.state_dict()
        self.progress.watched = [self.watch.best_epoch, self.watch.epoch]
        extra = {
            "average": self.averager.averages if self.averager else {},
            "best": self.best,
            "first": self.first,
            "watch": self.watch.tensors(),
        }
        save_checkpoint(
            self.checkpoint_path, self.progress, self.parameters, self.raw_optimiser, extra
        )

    def _keep(self, epoch: int) -> None:
        """Hand the model to `keep` where a snapshot is due: every so many epochs, and the last."""
        every = self.config.snapshot_every_epochs
        is_last = epoch == self.config.epochs or self._is_stale()
        if self.keep is None or not every or (epoch % every and not is_last):
            return
        if self.accelerator.is_main_process:
            with self.averager.applied() if self.averager else nullcontext():
                self.keep(epoch)

    def restore(self) -> None:
        """Go to where the checkpoint stands, to the start where there is none; writes nothing.

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
        device = self.accelerator.device
        self.best, self.first = (
            {name: value.to(device) for name, value in groups.get(group, {}).items()}
            for group in ("best", "first")
        )
        if groups.get("watch") and self.progress.watched:
            self.watch.best_epoch, self.watch.epoch = self.progress.watched
            self.watch.best, self.watch.latest = groups["watch"]["best"], groups["watch"]["latest"]
        if self.averager is not None:
            self.averager.num_updates = self.progress.num_averaged
            for name, value in groups.get("average", {}).items():
                self.averager.averages[name].copy_(value)
        if self.accelerator.scaler is not None and self.progress.scaler:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)


@contextmanager
def inference_weights(model: PeftModel) -> Iterator[None]:
    """Within: eval mode, no gradients, and adapters merged where that is exactly reversible.

    vitune's layers put the very tensors back; PEFT's own subtract what they added, which drifts,
    so a model that has any of those is evaluated un-merged.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    exact = bool(layers) and all(isinstance(m, MethodLayer) and m.mergeable for m in layers)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if exact:
                model.merge_adapter()
            yield
    finally:
        if exact:
            model.unmerge_adapter()
        model.train(was_training)
