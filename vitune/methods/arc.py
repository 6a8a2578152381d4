"""ARC: adapters re-composed from one projection that all blocks share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.methods.authoring import (
    ALL_LINEAR,
    OPTIONS,
    QKV_PARTS,
    Counts,
    LinearLayer,
    MethodConfig,
    MethodLayer,
    Roles,
    Site,
    Tensors,
    VituneError,
    check_choice,
    check_rank,
    check_rate,
    linear_shape,
    require_linear,
    uniform,
)

PLACES = {"qkv": "attn", "q": "attn", "k": "attn", "v": "attn", "fc1": "mlp"}
"""Which of a block's two adapters acts on a linear layer."""


@dataclass
class ARCConfig(MethodConfig):
    """x' = x + (x U ⊙ c) Uᵀ + β before q, k, v and before the MLP; U shared by all blocks.

    Folded: W' = W (I + U diag(c) Uᵀ), b' = b + W β.

    Shapes: U (d, r), one for attention and one for the MLP; per block and position c (r,), β (d,).
    Args:
        rank: r.
        dropout: rate on the bottleneck (x U ⊙ c) while training.
        init: of c before the MLP: "paper" is xavier_uniform, so that training starts near, not
            at, the pre-trained function; "identity" is 0, as before attention.

    Raises:
        VituneError: a value out of range, or roles that name a part of a fused qkv.
        BackboneError: at injection, where a site is not a linear layer.
    Source: ARC (NeurIPS 2023) and its code. On a Swin, U is shared by the blocks of one width, as
        in that code; the MLP's adapter comes after the norm, not on the residual, so that it
        merges.
    """

    rank: int = field(default=50)
    dropout: float = field(default=0.1)
    init: str = field(default="paper")

    identity_args = MappingProxyType({"init": "identity"})
    method = "arc"
    title = "ARC"
    source = "Adapter Re-Composing, NeurIPS 2023"
    formula = "2·d·r + 2·L·(r + d)"
    counts_on_vit_b16: ClassVar[Counts] = (({}, 96_432),)
    default_roles: ClassVar[Roles] = (*QKV_PARTS, "fc1")
    shares_parameters = True
    narrowed_by = OPTIONS - {ALL_LINEAR}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank)
        check_rate("dropout", self.dropout)
        check_choice("init", self.init, ("paper", "identity"))

    @property
    def identity_at_init(self) -> bool:
        return self.init == "identity"

    @classmethod
    def reason_against(cls, option: str) -> str:
        """Why the method does not support an option."""
        return f"{cls.title} acts before q, k, v and the MLP only"

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        if site.role not in PLACES:
            raise VituneError(
                f"roles: got {self.roles!r}, expected some of {tuple(PLACES)}: {self.title} has "
                "adapters nowhere else."
            )
        require_linear(site, module, self.title, roles=self.roles)
        return RecomposedLinear

    def new_shared(self, model: nn.Module, sites: Sequence[Site]) -> nn.Module:
        return Recomposition(self, [(site, linear_shape(model, site)[1]) for site in sites])

    def decayed_by_authors(self, place: str, name: str, parameter: Tensor) -> bool:
        """Everything: the authors' code has one group of all trained parameters."""
        return True

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        widths = {(PLACES[s.role], s.block): linear_shape(model, s)[1] for s in sites}
        bases = {(place, width) for (place, _), width in widths.items()}
        per_place = sum(self.rank + width for width in widths.values())
        return per_place + sum(width * self.rank for _, width in bases)


@dataclass
class ARCAttentionConfig(ARCConfig):
    """ARC before q, k, v only: exactly the pre-trained function at the start.

    Source: ARC (NeurIPS 2023), its "att" variant.
    """

    method = "arc_att"
    title = "ARC, attention only"
    formula = "d·r + L·(r + d)"
    counts_on_vit_b16 = (({}, 48_216),)
    default_roles = QKV_PARTS
    identity_at_init = True


class Recomposition(nn.Module):
    """All parameters of one ARC adapter: U by position and width, c and β by position and block.

    They are kept here and not in the layers because separate q, k and v linears share one adapter.
    """

    def __init__(self, config: ARCConfig, inputs: Sequence[tuple[Site, int]]) -> None:
        super().__init__()
        for site, width in inputs:
            place = PLACES[site.role]
            if not hasattr(self, f"{place}_basis_{width}"):
                bound = math.sqrt(6 / (width + config.rank))
                basis = uniform((width, config.rank), bound)
                self.register_parameter(f"{place}_basis_{width}", nn.Parameter(basis))
            if not hasattr(self, f"{place}_scale_{site.block}"):
                bound = math.sqrt(6 / (1 + config.rank))
                is_zero = place == "attn" or config.init == "identity"
                scale = torch.zeros(config.rank) if is_zero else uniform((config.rank,), bound)
                self.register_parameter(f"{place}_scale_{site.block}", nn.Parameter(scale))
                shift = nn.Parameter(torch.zeros(width))
                self.register_parameter(f"{place}_shift_{site.block}", shift)


class RecomposedLinear(LinearLayer):
    """A linear layer after an ARC adapter; its parameters are the shared ones."""

    merge_tolerance = 2e-5

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        weight, bias = tensors["weight"], tensors["bias"]
        assert weight is not None
        basis, scale, shift = self._own(adapter)
        change = ((weight.to(basis.dtype) @ basis) * scale) @ basis.T  # (o, i)
        offset = weight.to(shift.dtype) @ shift  # (o,)
        return {
            "weight": (weight + change).to(weight.dtype),
            "bias": offset if bias is None else bias + offset,
        }

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        basis, scale, shift = (t.to(x.dtype) for t in self._own(adapter))
        rate = self.configs[adapter].dropout
        hidden = F.dropout((x @ basis) * scale, rate, self.training)  # (..., r)
        return self.base_layer(x + hidden @ basis.T + shift)

    def _own(self, adapter: str) -> tuple[Tensor, Tensor, Tensor]:
        """U, c and β of this layer's position."""
        shared, place = self.shared[adapter], PLACES[self.site.role]
        assert shared is not None
        names = (f"basis_{self.num_in}", f"scale_{self.site.block}", f"shift_{self.site.block}")
        basis, scale, shift = (getattr(shared, f"{place}_{name}") for name in names)
        return basis, scale, shift
