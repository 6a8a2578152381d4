"""The classic adapters: a bottleneck with a skip after attention and MLP, or after the MLP only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitune.methods.authoring import (
    BottleneckLayer,
    Call,
    Counts,
    MethodConfig,
    MethodLayer,
    Roles,
    Site,
    bottleneck_parameters,
    check_choice,
    check_rank,
    linear_shape,
    require_linear,
    truncated_normal,
)

INIT_STD = 0.01


@dataclass
class HoulsbyConfig(MethodConfig):
    """h ← h + GELU(h W_dᵀ + b_d) W_uᵀ + b_u, h the output of attention and of the MLP.

    Shapes: per position W_d (r, d); b_d (r,); W_u (d, r); b_u (d,).
    Args:
        rank: r.
        init: of W_u: "paper" is truncated normal with σ = .01, near the identity; "identity" 0.

    Raises:
        VituneError: a value out of range.
        BackboneError: at injection, where attention reads its output layer's weight itself.
    Source: Houlsby et al. (ICML 2019), on the branches before their residual sums. On a ViT each
        branch is normalised before, not after, so that its LayerNorms are left as they are.
    """

    rank: int = field(default=8)
    init: str = field(default="paper")

    identity_args = MappingProxyType({"init": "identity"})
    method = "houlsby"
    title = "Houlsby adapter"
    source = "Parameter-Efficient Transfer Learning for NLP, ICML 2019"
    formula = "2·L·(2·d·r + r + d)"
    counts_on_vit_b16: ClassVar[Counts] = (({}, 313_536),)
    default_roles: ClassVar[Roles] = ("attn_out", "fc2")
    mergeable = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank)
        check_choice("init", self.init, ("paper", "identity"))

    @property
    def identity_at_init(self) -> bool:
        return self.init == "identity"

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        require_linear(site, module, self.title, roles=self.roles, is_called=True)
        return SequentialBottleneck

    def new_matrices(self, width: int) -> tuple[Tensor, Tensor]:
        """W_d truncated normal, W_u too or 0."""
        down = truncated_normal((self.rank, width), INIT_STD)
        if self.identity_at_init:
            return down, torch.zeros(width, self.rank)
        return down, truncated_normal((width, self.rank), INIT_STD)

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        widths = (linear_shape(model, site)[0] for site in sites)
        return sum(bottleneck_parameters(width, self.rank) for width in widths)


@dataclass
class PfeifferConfig(HoulsbyConfig):
    """h ← h + ReLU(h W_dᵀ + b_d) W_uᵀ + b_u, h the output of the MLP alone.

    Source: Pfeiffer et al. (EACL 2021), the single-adapter form, before the residual sum.
    """

    method = "pfeiffer"
    title = "Pfeiffer adapter"
    source = "AdapterFusion, EACL 2021"
    formula = "L·(2·d·r + r + d)"
    counts_on_vit_b16 = (({}, 156_768),)
    default_roles = ("fc2",)

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        super().layer_class(site, module)
        return RectifiedBottleneck


class SequentialBottleneck(BottleneckLayer):
    """A linear layer followed by a bottleneck with a skip."""

    activation = "gelu"

    def around(self, inner: Call, adapter: str, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = inner(x, *args, **kwargs)  # (..., d)
        return self.joined(y, self.branch(y, adapter))


class RectifiedBottleneck(SequentialBottleneck):
    """The same with ReLU."""

    activation = "relu"
