"""The loss of every step, read without making a GPU wait; an error names the bad step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vitune.errors import TrainingError

LAG = 8
"""How many steps a GPU may be ahead of the loss being read."""


@dataclass(frozen=True)
class _Seen:
    """The loss of one step, on its way to the host."""

    value: Tensor
    arrived: torch.cuda.Event | None
    step: int
    epoch: int

    def read(self) -> float:
        if self.arrived is not None:
            self.arrived.synchronize()  # waits for this step, not for later ones
        return float(self.value)


class LossWatch:
    """Takes each step's loss and returns it as a number a few steps later.

    Args:
        device: of the losses; on a CPU there is nothing to wait for, and losses come back at once.
        lag: how many steps later; None is LAG on a GPU, else 0.
    """

    def __init__(self, device: torch.device, lag: int | None = None) -> None:
        usual = LAG if device.type == "cuda" else 0
        self.lag = usual if lag is None else lag
        self._waiting: deque[_Seen] = deque()

    def add(self, loss: Tensor, step: int, epoch: int) -> Iterator[float]:
        """The losses that are due after this one, oldest first.

        Args:
            step, epoch: counted from 1.

        Raises:
            TrainingError: one of them is not finite.
        """
        self._waiting.append(_sent(loss.detach(), step, epoch))
        return self._due(self.lag)

    def rest(self) -> Iterator[float]:
        """The losses that are still unread; call it before weights are scored or saved.

        Raises:
            TrainingError: one of them is not finite.
        """
        return self._due(0)

    def _due(self, ahead: int) -> Iterator[float]:
        while len(self._waiting) > ahead:
            seen = self._waiting.popleft()
            value = seen.read()
            if not math.isfinite(value):
                raise TrainingError(
                    f"loss: got {value!r} at step {seen.step} (epoch {seen.epoch}), expected a "
                    "finite number. Try a lower --lr or --clip-grad 1; the last checkpoint is kept."
                )
            yield value


def _sent(loss: Tensor, step: int, epoch: int) -> _Seen:
    if loss.device.type != "cuda":
        return _Seen(loss, None, step, epoch)
    value = torch.empty((), dtype=loss.dtype, pin_memory=True)
    value.copy_(loss, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return _Seen(value, arrived, step, epoch)
