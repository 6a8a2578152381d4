"""Validation during training: when its loss starts to rise, which epoch to keep, when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vitune.ops import calibrated_losses, paired

STOP_ERRORS = 2.0
"""By how many standard errors an epoch must be worse than the best one for training to stop."""

KEEP_ERRORS = 1.0
"""By how many standard errors the last epoch must be worse than the best one to be dropped."""


@dataclass
class Watch:
    """Follows validation cross-entropy, each epoch at its own best temperature.

    Overconfidence is corrected by a temperature afterwards and is no reason to stop; a worse
    ranking of the classes is. Differences are paired, image by image.

    Args:
        patience: epochs since the best one before training may stop.
        best_epoch: the epoch with the lowest loss; 0 is before the first step, -1 before any was
            seen.
        best, latest: (n,) losses of that epoch and of the latest.
        groups: (n,) of these images, if they are known.
    """

    patience: int
    best_epoch: int = -1
    epoch: int = -1
    best: Tensor = field(default_factory=lambda: torch.zeros(0))
    latest: Tensor = field(default_factory=lambda: torch.zeros(0))
    groups: np.ndarray | None = None

    @classmethod
    def over(cls, epochs: int, groups: np.ndarray | None = None) -> Watch:
        """For a run of `epochs` epochs: a third of them, and at least five, may be worse.

        While the rate is high, loss may rise for a while and still come down with the rate.
        """
        return cls(patience=max(5, math.ceil(epochs / 3)), groups=groups)

    def saw(self, epoch: int, logits: Tensor, labels: Tensor) -> bool:
        """Record the logits of all validation images after `epoch`; return whether it is the best.

        Shapes: logits (n, c); labels (n,) int64.
        """
        self.epoch, self.latest = epoch, calibrated_losses(logits, labels)
        is_best = self.best_epoch < 0 or self.latest.mean() < self.best.mean()
        if is_best:
            self.best_epoch, self.best = epoch, self.latest
        return bool(is_best)

    @property
    def has_turned(self) -> bool:
        """Whether to stop: loss has risen for long enough and by more than chance."""
        return self.epoch - self.best_epoch >= self.patience and self._is_worse(STOP_ERRORS)

    @property
    def kept_epoch(self) -> int:
        """The epoch to keep: the latest, or the best one if the latest is clearly worse."""
        prefers_best = self.epoch > self.best_epoch >= 0 and self._is_worse(KEEP_ERRORS)
        return self.best_epoch if prefers_best else self.epoch

    def _is_worse(self, errors: float) -> bool:
        mean, error = paired(self.latest, self.best, self.groups)
        return mean > errors * error

    def tensors(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        return {"best": self.best, "latest": self.latest}
