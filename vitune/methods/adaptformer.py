"""AdaptFormer: a bottleneck in parallel to each block's MLP."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    find_sites,
    require_features_last,
    tapped,
    uniform,
    with_tokens,
)

ENTRANCE = ("norm2", "fc1")
"""Roles of the module with which a block's MLP begins: the norm, if there is one."""


@dataclass
class AdaptFormerConfig(BlockConfig):
    """y = x + MLP(LN₂(x)) + s·(ReLU(x W_dᵀ + b_d) W_uᵀ + b_u), x un-normalised, after attention.

    Shapes: W_d (r, d); b_d (r,); W_u (d, r); b_u (d,).
    Args:
        rank: r; 8 in the VTAB-1k tables, 64 in the original.
        scale: s, fixed.
        dropout: rate on the bottleneck while training.

    Raises:
        VituneError: a value out of range, or roles, which the method does not use.
        BackboneError: at injection, where the backbone has no transformer blocks, or one whose MLP
            sees other tokens than the block returns.
    Source: AdaptFormer (NeurIPS 2022) and its code. The branch joins the residual stream
        directly: neither the layer scale nor the drop path of the MLP applies to it.
    """

    rank: int = field(default=8)
    scale: float = field(default=0.1)
    dropout: float = field(default=0.1)

    method = "adaptformer"
    title = "AdaptFormer"
    source = "AdaptFormer, NeurIPS 2022"
    formula = "L·(2·d·r + r + d)"
    counts_on_vit_b16 = (({}, 156_768), ({"rank": 64}, 1_189_632))
    mergeable = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank)
        check_rate("dropout", self.dropout)

    def check(self, model: nn.Module, sites: Sequence[Site]) -> None:
        inner = {site.name: _mlp_entrance(model, site) for site in sites}
        require_features_last(model, sites, self.title, tapped=inner)

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        return ParallelBottleneck

    def new_matrices(self, width: int) -> tuple[Tensor, Tensor]:
        """W_d ~ kaiming_uniform(a = √5), W_u = 0."""
        return uniform((self.rank, width), 1 / math.sqrt(width)), torch.zeros(width, self.rank)

    def decayed_by_authors(self, place: str, name: str, parameter: Tensor) -> bool:
        """Everything: the authors' code has one group of all trained parameters."""
        return True

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        widths = (block_width(model, site) for site in sites)
        return sum(bottleneck_parameters(width, self.rank) for width in widths)


class ParallelBottleneck(BottleneckLayer):
    """A block with a bottleneck from the input of its MLP's half to its output."""

    def around(self, inner: Call, adapter: str, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        config = self.configs[adapter]
        seen: list[Tensor] = []
        with tapped(self.inner_module(*ENTRANCE), on_input=seen.append):
            output = inner(x, *args, **kwargs)
        change = self.branch(seen[0], adapter, config.dropout) * config.scale
        return with_tokens(output, lambda y: self.joined(y, change.view_as(y)))


def _mlp_entrance(model: nn.Module, block: Site) -> str:
    """The name of the module whose input the bottleneck reads."""
    start = f"{block.name}."
    inner = (site for site in find_sites(model) if site.name.startswith(start))
    return next(site.name for site in inner if site.role in ENTRANCE)
