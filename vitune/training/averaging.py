"""Exponential moving average of the trainable parameters only: a frozen backbone needs none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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
