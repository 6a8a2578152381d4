"""A network that returns logits and the features that enter its classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitune.backbones import head_name, logits_of


class Runner:
    """One pass through a network.

    Shapes: inputs (b, 3, h, w) -> logits (b, c), features (b, d), both float32 on the CPU.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        name = head_name(network)
        self.head = None if name is None else network.get_submodule(name)

    @torch.inference_mode()
    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features of a batch; features are the logits if there is no classifier."""
        seen: list[Tensor] = []

        def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            seen.append(arguments[0])

        hook = None if self.head is None else self.head.register_forward_pre_hook(keep)
        try:
            logits = logits_of(self.network(inputs)).float().cpu()
        finally:
            if hook is not None:
                hook.remove()
        features = seen[0].float().flatten(1).cpu() if seen else logits
        return logits, features
