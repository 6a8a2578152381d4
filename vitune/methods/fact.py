"""FacT: one tensor of all weight changes, factorised; both factors of every width are shared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.backbones.sites import Site
from vitune.errors import BackboneError
from vitune.methods._checks import check_rank, check_rate
from vitune.methods._linear import (
    BLOCK_LINEARS,
    LinearLayer,
    linear_default,
    linear_shape,
    require_linear,
    uniform,
)
from vitune.methods._roles import choose_sites
from vitune.methods._tuner import MethodConfig, MethodLayer, Tensors


@dataclass
class FacTTTConfig(MethodConfig):
    """ΔW = s · V M U in blocks of d × d, M a core of each block's own, U and V shared by all.

    A linear of c·d outputs and c'·d inputs (d the width) has c·c' cores.

    Shapes: U (r, d); V (d, r); cores (c, c', r, r).
    Args:
        rank: r.
        scale: s; the paper's grid is .01, .1, 1, 10, 100, a task.
        dropout: rate on the cores' output while training.

    Raises:
        VituneError: a value out of range, or roles that name a part of a fused qkv.
        BackboneError: at injection, where a linear is no multiple of the width.
    Source: FacT (AAAI 2023), TT form, and its code: V = 0, the rest like `nn.Linear`.
    """

    rank: int = field(default=8)
    scale: float = field(default=1.0)
    dropout: float = field(default=0.1)

    method = "fact_tt"
    title = "FacT-TT"
    source = "Factor-Tuning, AAAI 2023"
    formula = "2·d·r + 12·L·r²"
    shares_parameters = True
    tucker: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank)
        check_rate("dropout", self.dropout)

    @property
    def identity_at_init(self) -> bool:
        return True

    def choose(self, sites: Sequence[Site]) -> Sequence[Site]:
        roles = self.roles or BLOCK_LINEARS
        is_named = self.roles is not None
        return choose_sites(sites, roles, self.blocks, named=is_named, by=self.title)

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        require_linear(site, module, self.title, roles=self.roles, changes_bias=False)
        return FactorisedLinear

    def new_shared(self, model: nn.Module, sites: Sequence[Site]) -> nn.Module:
        return Factors(self, slices_by_width([linear_shape(model, site) for site in sites]))

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        slices = slices_by_width([linear_shape(model, site) for site in sites])
        return sum(self._count(width, number) for width, number in slices.items())

    def _count(self, width: int, num_slices: int) -> int:
        return 2 * width * self.rank + num_slices * self.rank**2


@dataclass
class FacTTKConfig(FacTTTConfig):
    """FacT-TT with the cores composed, M_m = Σ_c C[c] P[c, m], C shared by all.

    Shapes: U (r, d); V (d, r); C (r, r, r); P (r, c·c') per linear.
    Args:
        rank: r; the paper uses up to 32.

    Source: FacT (AAAI 2023), Tucker form, and its code; C, P xavier_uniform over all blocks. The
        code reads its slices transposed for most linears, which is the same set of functions.
    """

    rank: int = field(default=32)

    method = "fact_tk"
    title = "FacT-TK"
    formula = "2·d·r + 12·L·r + r³"
    tucker = True

    def _count(self, width: int, num_slices: int) -> int:
        return 2 * width * self.rank + num_slices * self.rank + self.rank**3


class Factors(nn.Module):
    """What all layers of one width share: U, V and, for Tucker, C."""

    def __init__(self, config: FacTTTConfig, slices: Mapping[int, int]) -> None:
        super().__init__()
        rank = config.rank
        self.num_slices = dict(slices)
        for width in slices:
            down = linear_default((rank, width), width)
            self.register_parameter(f"down_{width}", nn.Parameter(down))
            self.register_parameter(f"up_{width}", nn.Parameter(torch.zeros(width, rank)))
            if config.tucker:
                core = uniform((rank, rank, rank), math.sqrt(3) / rank)
                self.register_parameter(f"core_{width}", nn.Parameter(core))


class FactorisedLinear(LinearLayer):
    """A linear layer under FacT.

    Shapes: cores (c, c', r, r), or (r, c·c') where the cores are composed.
    """

    adapter_layer_names = ("cores",)
    merge_tolerance = 2e-5

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        assert isinstance(shared, Factors)
        num_out, num_in, rank = *self._chunks(), config.rank
        if config.tucker:
            fans = shared.num_slices[self._width()] + rank
            return {"cores": uniform((rank, num_out * num_in), math.sqrt(6 / fans))}
        return {"cores": linear_default((num_out, num_in, rank, rank), num_in * rank)}

    def _width(self) -> int:
        return math.gcd(self.num_out, self.num_in)

    def _chunks(self) -> tuple[int, int]:
        width = self._width()
        return self.num_out // width, self.num_in // width

    def _cores(self, adapter: str) -> Tensor:
        """M (c, c', r, r) of this linear."""
        cores: Tensor = self.cores[adapter]
        if not self.configs[adapter].tucker:
            return cores
        core = getattr(self.shared[adapter], f"core_{self._width()}")
        composed = torch.einsum("cqr,cm->mqr", core, cores)  # (c·c', r, r)
        return composed.unflatten(0, self._chunks())

    def _factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """U (r, d) and s·V (d, r)."""
        shared, width = self.shared[adapter], self._width()
        up = getattr(shared, f"up_{width}") * self.configs[adapter].scale
        return getattr(shared, f"down_{width}"), up

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        weight = tensors["weight"]
        assert weight is not None
        down, up = self._factors(adapter)
        change = up @ self._cores(adapter) @ down  # (c, c', d, d)
        change = change.permute(0, 2, 1, 3).reshape(weight.shape)
        return {**tensors, "weight": (weight + change).to(weight.dtype)}

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        down, up = (t.to(x.dtype) for t in self._factors(adapter))
        cores = self._cores(adapter).to(x.dtype)
        num_out, num_in = self._chunks()
        hidden = F.linear(x.unflatten(-1, (num_in, -1)), down)  # (..., c', r)
        mixed = cores.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)  # (c·r, c'·r)
        hidden = F.linear(hidden.flatten(-2), mixed)  # (..., c·r)
        hidden = F.dropout(hidden, self.configs[adapter].dropout, self.training)
        change = F.linear(hidden.unflatten(-1, (num_out, -1)), up)  # (..., c, d)
        return self.base_layer(x) + change.flatten(-2)


def slices_by_width(shapes: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Number of d × d blocks in all linears of each width d.

    Raises:
        BackboneError: a linear whose smaller side does not divide the larger.
    """
    found: dict[int, int] = {}
    for num_out, num_in in shapes:
        width = math.gcd(num_out, num_in)
        if width != min(num_out, num_in):
            raise BackboneError(
                f"FacT: got a linear of {num_out} outputs and {num_in} inputs, expected one a "
                "multiple of the other. Leave the role out with roles=..., or take another method."
            )
        found[width] = found.get(width, 0) + num_out * num_in // width**2
    return found
