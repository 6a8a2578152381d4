"""FacT's replacement of linears: shared factors, and separate cores for each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.methods.authoring import BackboneError, LinearLayer, Tensors, linear_default, uniform


class Factors(nn.Module):
    """What all layers of one width share: U, V and, in Tucker form, C."""

    def __init__(self, config: Any, slices: Mapping[int, int]) -> None:
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
        if self.configs[adapter].layout == "official":
            return self._official_cores(core, cores)
        composed = torch.einsum("cqr,cm->mqr", core, cores)  # (c·c', r, r)
        return composed.unflatten(0, self._chunks())

    def _official_cores(self, core: Tensor, cores: Tensor) -> Tensor:
        """M (c, c', r, r) in the order in which the authors' code reads its slices."""
        slices = core @ cores  # (r, r, c·c')
        if self.site.role not in ("fc1", "fc2"):
            return slices.permute(2, 1, 0).unflatten(0, self._chunks())
        matrix = slices.flatten(1).unflatten(1, (-1, len(core)))  # (r, c·c', r)
        order = (1, 2, 0) if self.site.role == "fc1" else (1, 0, 2)
        return matrix.permute(order).unflatten(0, self._chunks())

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
                f"FacT: got a linear of {num_out} outputs and {num_in} inputs, expected one to "
                "be a multiple of the other. Leave the role out with roles=..., or use another "
                "method."
            )
        found[width] = found.get(width, 0) + num_out * num_in // width**2
    return found
