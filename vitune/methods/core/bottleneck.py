"""Up(activation(Down(x))): the bottleneck that all adapter methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.backbones.sites import Site, find_sites
from vitune.methods.core.linear_layers import linear_shape
from vitune.methods.core.wrapper import WrapperLayer

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class BottleneckLayer(WrapperLayer):
    """z ↦ W_u act(W_d z + b_d) + b_u in parallel to or after a module.

    Shapes: down W_d (r, d); down_bias (r,); up W_u (d, r); up_bias (d,); z (..., d).
    """

    adapter_layer_names: tuple[str, ...] = ("down", "down_bias", "up", "up_bias")
    no_decay = frozenset({"down_bias", "up_bias"})
    activation: ClassVar[str] = "relu"

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        width = self.width
        down, up = config.new_matrices(width)
        return {
            "down": down,
            "down_bias": torch.zeros(config.rank),
            "up": up,
            "up_bias": torch.zeros(width),
        }

    def branch(self, z: Tensor, adapter: str, dropout: float = 0.0) -> Tensor:
        """The bottleneck of `adapter` on tokens z, in their dtype."""
        down, down_bias, up, up_bias = (
            getattr(self, name)[adapter].to(z.dtype)
            for name in ("down", "down_bias", "up", "up_bias")
        )
        hidden: Tensor = ACTIVATIONS[self.activation](F.linear(z, down, down_bias))  # (..., r)
        hidden = F.dropout(hidden, dropout, self.training and dropout > 0)
        return F.linear(hidden, up, up_bias)  # (..., d)


def bottleneck_parameters(width: int, rank: int) -> int:
    """2 d r + r + d: both matrices with their biases."""
    return 2 * width * rank + rank + width


def block_width(model: nn.Module, block: Site) -> int:
    """Output features of a block, read from its last linear."""
    last = next(
        site
        for site in find_sites(model)
        if site.role == "fc2" and site.name.startswith(f"{block.name}.")
    )
    return linear_shape(model, last)[0]


def truncated_normal(shape: tuple[int, ...], std: float) -> Tensor:
    """N(0, std) cut at two standard deviations."""
    return nn.init.trunc_normal_(torch.empty(shape), std=std, a=-2 * std, b=2 * std)
