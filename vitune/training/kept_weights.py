"""Which weights a run ends with: the last, the best, or a mixture with those it started from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from vitune.ops import calibrated_losses
from vitune.training.mixing import SHARES, chosen_share, mixed
from vitune.training.resume_point import Progress
from vitune.training.train_config import TrainConfig
from vitune.training.validating import Seen
from vitune.training.watching import Watch


class KeptWeights:
    """Follows validation, keeps the weights of the best epoch, and writes back those to report.

    Args:
        parameters: the trainable parameters by name.
        config: `select`, `patience` and `epochs` are read.
        has_start: whether training starts at a solved classifier, so that the weights before the
            first step are a candidate too.
        known_share: how far to move from those first weights to the trained ones where there is
            no validation to decide; None means all the way.
        groups: of the validation images, (n,), if they are known.

    Attributes:
        recent: moving averages of the weights up to the best epoch; empty if there are none.
        is_averaged: whether `select` preferred them to the weights at its end.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: TrainConfig,
        *,
        has_start: bool = False,
        known_share: float | None = None,
        groups: np.ndarray | None = None,
    ) -> None:
        self.parameters, self.config = parameters, config
        self.has_start, self.known_share = has_start, known_share
        self.watch = Watch.over(config.epochs, groups)
        self.best: dict[str, Tensor] = {}
        self.first: dict[str, Tensor] = {}
        self.recent: dict[str, Tensor] = {}
        self.is_averaged = False
        self.share: float | None = None

    @property
    def was_scored(self) -> bool:
        """Whether `select` scored the weights that it ended with, which are no epoch's own."""
        return self.share is not None or self.is_averaged

    def keep_start(self, has_val: bool) -> bool:
        """Keep the weights before the first step if they may be reported; True if it did."""
        can_choose = has_val or self.known_share is not None
        if not can_choose or self.config.select != "auto" or not self.has_start:
            return False
        self.first = self._copied()
        return True

    def saw(self, epoch: int, seen: Seen, recent: Mapping[str, Tensor] | None = None) -> None:
        """Record the latest validation, and keep the weights if it is the best.

        Args:
            recent: averages of the weights, which were not what was scored; kept beside them.
        """
        if self.config.select != "auto" or not len(seen[1]):
            return
        if self.watch.saw(epoch, *seen):
            self.best = self._copied()
            self.recent = {name: value.clone() for name, value in (recent or {}).items()}

    def scored(self, progress: Progress, accuracy: float) -> None:
        """Record the validation accuracy of the latest epoch in `progress`."""
        progress.stale_epochs += 1
        if accuracy > progress.best_accuracy:
            progress.best_accuracy = accuracy
            progress.best_epoch = progress.epoch
            progress.stale_epochs = 0
            if self.config.select == "best":
                self.best = self._copied()

    def is_stale(self, progress: Progress) -> bool:
        """Whether it is time to stop."""
        patience = self.config.patience
        if patience is None and self.config.select == "auto":
            return self.watch.has_turned
        return patience is not None and progress.stale_epochs >= patience

    def reported_epoch(self, progress: Progress) -> int:
        """The epoch whose weights are reported, perhaps mixed with the first."""
        if self.share == 0:
            return 0
        if self.config.select == "auto" and self.watch.epoch >= 0:
            return self.watch.kept_epoch or progress.epoch
        use_best = self.config.select == "best" and progress.best_epoch
        return progress.best_epoch if use_best else progress.epoch

    @torch.no_grad()
    def select(
        self,
        progress: Progress,
        averages: Mapping[str, Tensor] | None,
        score: Callable[[], Seen] | None,
    ) -> Seen | None:
        """Put the weights of the reported epoch into the model.

        Args:
            averages: averaged weights, if those are what was scored.
            score: runs the model on the validation images; None without them.

        Returns:
            Validation logits and labels of the weights if they are averages or mixed ones that
            were not scored before; else None.
        """
        averaged = None
        if self.reported_epoch(progress) != progress.epoch and self.best:
            self._put(self.best)
            averaged = self._averaged(score)
        elif averages is not None:
            self._put(averages)
        if self.first and score is not None:
            return self._mix(score)
        if self.first and self.known_share is not None:
            self.share = self.known_share
            self._put(mixed(self.first, self._copied(), self.share))
        return averaged

    def _averaged(self, score: Callable[[], Seen] | None) -> Seen | None:
        """Take the averages of the epoch if validation prefers them: its rate was still high."""
        if not self.recent or score is None:
            return None
        self._put(self.recent)
        seen = score()
        self.is_averaged = bool(calibrated_losses(*seen).mean() < self.watch.best.mean())
        if self.is_averaged:
            return seen
        self._put(self.best)
        return None

    def _mix(self, score: Callable[[], Seen]) -> Seen:
        """Move back towards the first weights as far as validation asks for."""
        trained, seen = self._copied(), []
        for share in SHARES:
            self._put(mixed(self.first, trained, share))
            seen.append(score())
        losses = [calibrated_losses(*found) for found in seen]
        self.share = chosen_share(losses, groups=self.watch.groups)
        self.is_averaged &= self.share > 0
        self._put(mixed(self.first, trained, self.share))
        return seen[SHARES.index(self.share)]

    def _copied(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        """Write weights into the model."""
        for name, value in weights.items():
            self.parameters[name].copy_(value)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Tensors for the checkpoint, by group."""
        kept = {"best": self.best, "first": self.first, "recent": self.recent}
        return {**kept, "watch": self.watch.tensors()}

    def restore(
        self, progress: Progress, groups: Mapping[str, Mapping[str, Tensor]], device: torch.device
    ) -> None:
        """Continue from what a checkpoint holds."""
        self.best, self.first, self.recent = (
            {name: value.to(device) for name, value in groups.get(group, {}).items()}
            for group in ("best", "first", "recent")
        )
        if groups.get("watch") and progress.watched:
            self.watch.best_epoch, self.watch.epoch = progress.watched
            self.watch.best, self.watch.latest = groups["watch"]["best"], groups["watch"]["latest"]
