"""Exponential moving average of the trainable parameters only: a frozen backbone needs none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitune.training.train_config import TrainConfig


def averager_for(
    parameters: Mapping[str, nn.Parameter],
    config: TrainConfig,
    steps_per_epoch: int,
    has_val: bool,
) -> Averager | None:
    """The averages that `config.ema` asks for, or those of about the latest epoch, which are a
    candidate where validation chooses the weights; None if neither is wanted."""
    if config.ema:
        return Averager(parameters, config.ema, ramp=config.ema_ramp)
    if config.select == "auto" and has_val:
        return Averager(parameters, 1 - 1 / max(2, steps_per_epoch))
    return None


class Averager:
    """θ̄ ← d θ̄ + (1 - d) θ after every optimiser step.

    Args:
        parameters: trainable parameters by name.
        decay: d in (0, 1), the same at every step without a ramp.
        ramp: d = min(decay, (1 + t) / (10 + t)) at step t, so that short runs forget their start.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], decay: float, *, ramp: bool = True
    ) -> None:
        self.parameters, self.decay, self.ramp = dict(parameters), decay, ramp
        self.num_updates = 0
        self.averages = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current parameters to the average."""
        self.num_updates += 1
        decay = self.decay
        if self.ramp:
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(
            list(self.averages.values()),
            [parameter.detach() for parameter in self.parameters.values()],
            1 - decay,
        )

    @torch.no_grad()
    def restore(self, averages: Mapping[str, Tensor], num_updates: int) -> None:
        """Continue from `averages` after so many steps, or from the parameters without any."""
        self.num_updates = num_updates if averages else 0
        for name, value in (averages or self.parameters).items():
            self.averages[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the model has the averages; afterwards its own values again."""
        own = {name: value.detach().clone() for name, value in self.parameters.items()}
        self._write(self.averages)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
