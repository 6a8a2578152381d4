"""Adapter+: a bottleneck after each block, scaled per channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitune.methods.authoring import (
    BlockConfig,
    BottleneckLayer,
    Call,
    MethodLayer,
    Site,
    block_width,
    bottleneck_parameters,
    check_rank,
    check_rate,
    require_features_last,
    truncated_normal,
    with_tokens,
)

INIT_STD = 0.01


@dataclass
class AdapterPlusConfig(BlockConfig):
    """x ← x + γ ⊙ DropPath(GELU(x W_dᵀ + b_d) W_uᵀ + b_u), x the output of a block.

    Shapes: W_d (r, d); b_d (r,); W_u (d, r); b_u, γ (d,).
    Args:
        rank: r.
        drop_path: probability, per image, that a block's adapter is skipped in training.

    Raises:
        VituneError: a value out of range, or roles, which the method does not use.
        BackboneError: at injection, where the backbone has no transformer blocks, or one whose
            features are not the last axis of the tokens.
    Source: Adapter+ (CVPR 2024) and its code: both matrices truncated normal with σ = .01, so
        training starts near, not at, the pre-trained function; γ = 1.
    """

    rank: int = field(default=8)
    drop_path: float = field(default=0.1)

    method = "adapter_plus"
    title = "Adapter+"
    source = "Adapters Strike Back, CVPR 2024"
    formula = "L·(2·d·r + r + 2·d)"
    counts_on_vit_b16 = (({"rank": 1}, 36_876), ({}, 165_984), ({"rank": 32}, 608_640))
    mergeable = False
    identity_at_init = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank)
        check_rate("drop_path", self.drop_path)

    def check(self, model: nn.Module, sites: Sequence[Site]) -> None:
        require_features_last(model, sites, self.title)

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        return PostBottleneck

    def new_matrices(self, width: int) -> tuple[Tensor, Tensor]:
        """W_d and W_u, both truncated normal."""
        down = truncated_normal((self.rank, width), INIT_STD)
        return down, truncated_normal((width, self.rank), INIT_STD)

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        widths = [block_width(model, site) for site in sites]
        return sum(bottleneck_parameters(width, self.rank) + width for width in widths)


class PostBottleneck(BottleneckLayer):
    """A block followed by a bottleneck with a skip; scale γ (d,)."""

    adapter_layer_names = (*BottleneckLayer.adapter_layer_names, "scale")
    no_decay = BottleneckLayer.no_decay | {"scale"}
    activation = "gelu"

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        return {**super().new_parameters(config, shared), "scale": torch.ones(self.width)}

    def around(self, inner: Call, adapter: str, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        def added(y: Tensor) -> Tensor:
            change = self.branch(y, adapter) * self.scale[adapter].to(y.dtype)
            return self.joined(y, self._dropped(change, self.configs[adapter].drop_path))

        return with_tokens(inner(x, *args, **kwargs), added)

    def _dropped(self, change: Tensor, rate: float) -> Tensor:
        """Stochastic depth: whole images at `rate`, the rest scaled up to keep the mean."""
        if not self.training or rate == 0:
            return change
        kept = torch.rand(len(change), *[1] * (change.dim() - 1), device=change.device) >= rate
        return change * kept.to(change.dtype) / (1 - rate)
