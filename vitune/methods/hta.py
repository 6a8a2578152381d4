"""HTA: a low-rank update plus a diagonal between two Householder reflections."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.methods.authoring import (
    QKV_PARTS,
    Counts,
    LinearLayer,
    MethodConfig,
    MethodLayer,
    Roles,
    Site,
    Tensors,
    VituneError,
    linear_shape,
    parts_of,
    require_linear,
    uniform,
)

EPSILON = 1e-12


@dataclass
class HTAConfig(MethodConfig):
    """W' = W + B A + H(v_l) D H(v_r), H(v) = I − 2 v vᵀ / ‖v‖², D = diag(d) cut to (o, i).

    Shapes: per linear, or part of a fused qkv: v_l (o,); v_r (i,); d (min(o, i),); A (r, i);
        B (o, r).
    Args:
        rank: r; 0 leaves B A out.

    Raises:
        VituneError: a negative rank.
        BackboneError: at injection, where a site is not a linear layer.
    Source: HTA eq. 3 and 6 and Table 7 (q, k, v and the attention output). Reconstructed, as no
        code is public: the 2/‖v‖² that makes H orthogonal (eq. 3 prints I − v vᵀ), the cut
        diagonal for o ≠ i, and the start at d = 0, B = 0, v ~ N(0, 1), A kaiming: exactly the
        pre-trained function, d and B moving from the first step.
    """

    rank: int = field(default=1)

    method = "hta"
    title = "HTA"
    source = "Householder Transformation Adaptor"
    formula = "Σ out + in + min(out, in) + r·(out + in) over q, k, v and attention output"
    counts_on_vit_b16: ClassVar[Counts] = (
        ({"rank": 0}, 110_592),
        ({}, 184_320),
        ({"rank": 2}, 258_048),
        ({"rank": 4}, 405_504),
    )
    default_roles: ClassVar[Roles] = (*QKV_PARTS, "attn_out")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rank, int) or self.rank < 0:
            raise VituneError(f"rank: got {self.rank!r}, expected an integer of at least 0.")

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        whole = self.roles if site.num_parts == 1 else None
        require_linear(site, module, self.title, roles=whole, changes_bias=False)
        return ReflectedLinear

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        return sum(self._count(site, *linear_shape(model, site)) for site in sites)

    def _count(self, site: Site, num_out: int, num_in: int) -> int:
        is_fused = site.role == "qkv"
        num_parts = len(parts_of(site, self.roles)) if is_fused else 1
        size = num_out // (site.num_parts if is_fused else 1)
        return num_parts * (size + num_in + min(size, num_in) + self.rank * (size + num_in))


@dataclass
class SequentialHTAConfig(HTAConfig):
    """W' = M W, b' = M b with M = B A + H(v_l) diag(d) H(v_r), after the MLP of every block.

    Shapes: v_l, v_r, d (o,); A (r, o); B (o, r).
    Args:
        roles: linears that M follows; ("attn_out", "fc2") is the paper's full adapter form.

    Source: HTA eq. 7, placed as in Table 5's single-adapter row. Reconstructed: v_l = v_r and
        d = 1, so that H diag(1) H = I and training starts at the pre-trained function.
    """

    method = "hta_sequential"
    title = "HTA, sequential"
    formula = "Σ 3·out + 2·r·out over the second MLP linear"
    counts_on_vit_b16 = (({}, 46_080),)
    default_roles = ("fc2",)

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        require_linear(site, module, self.title, roles=self.roles)
        return ReflectedOutput

    def _count(self, site: Site, num_out: int, num_in: int) -> int:
        return 3 * num_out + 2 * self.rank * num_out


class ReflectedLinear(LinearLayer):
    """A linear layer under HTA; reflections act on vectors, never as width × width products.

    Shapes: v_out (p, o/p); v_in (p, i); diagonal (p, min); down A (p, r, i); up B (p, o/p, r),
        p counting the adapted parts of a fused layer.
    """

    adapter_layer_names = ("v_out", "v_in", "diagonal", "down", "up")
    no_decay = frozenset({"v_out", "v_in", "diagonal"})
    merge_tolerance = 2e-5

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        parts, size, num_in = len(self._parts(config)), self._part_size(), self.num_in
        values = {
            "v_out": torch.randn(parts, size),
            "v_in": torch.randn(parts, num_in),
            "diagonal": torch.zeros(parts, min(size, num_in)),
        }
        if config.rank:
            values["down"] = uniform((parts, config.rank, num_in), math.sqrt(6 / num_in))
            values["up"] = torch.zeros(parts, size, config.rank)
        return values

    def _parts(self, config: Any) -> tuple[int, ...]:
        return parts_of(self.site, config.roles) if self.site.role == "qkv" else (0,)

    def _part_size(self) -> int:
        return self.num_out // (self.site.num_parts if self.site.role == "qkv" else 1)

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        weight = tensors["weight"]
        assert weight is not None
        v_out, v_in, diagonal = self.v_out[adapter], self.v_in[adapter], self.diagonal[adapter]
        size, num_in = v_out.shape[1], v_in.shape[1]
        change = torch.diag_embed(diagonal)  # (p, m, m)
        change = F.pad(change, (0, num_in - change.shape[2], 0, size - change.shape[1]))
        change = _reflected(change, v_in.unsqueeze(1))  # (p, o/p, i)
        change = _reflected(change.mT, v_out.unsqueeze(1)).mT
        down, up = self.parameter("down", adapter), self.parameter("up", adapter)
        if down is not None and up is not None:
            change = change + up @ down
        pieces = list(weight.split(self._part_size()))
        for index, part in enumerate(self._parts(self.configs[adapter])):
            pieces[part] = (pieces[part] + change[index]).to(weight.dtype)
        return {**tensors, "weight": torch.cat(pieces)}

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        v_out, v_in, diagonal = (
            getattr(self, name)[adapter].to(x.dtype) for name in ("v_out", "v_in", "diagonal")
        )
        size, num_in = v_out.shape[1], v_in.shape[1]
        change = _reflected(x.unsqueeze(-2), v_in)  # (..., p, i)
        change = change[..., : min(size, num_in)] * diagonal  # (..., p, m)
        change = F.pad(change, (0, size - change.shape[-1]))  # (..., p, o/p)
        change = _reflected(change, v_out)
        down, up = self.parameter("down", adapter), self.parameter("up", adapter)
        if down is not None and up is not None:
            hidden = torch.einsum("...i,pri->...pr", x, down.to(x.dtype))
            change = change + torch.einsum("...pr,por->...po", hidden, up.to(x.dtype))
        return self.base_layer(x) + self._spread(change, adapter)

    def _spread(self, change: Tensor, adapter: str) -> Tensor:
        """(..., p, o/p) to (..., o), with zeros where a part is not adapted."""
        adapted = self._parts(self.configs[adapter])
        if len(adapted) * change.shape[-1] == self.num_out:
            return change.flatten(-2)
        num_parts = self.num_out // change.shape[-1]
        pieces = {part: change[..., index, :] for index, part in enumerate(adapted)}
        zero = torch.zeros_like(change[..., 0, :])
        return torch.cat([pieces.get(part, zero) for part in range(num_parts)], dim=-1)


class ReflectedOutput(LinearLayer):
    """A linear layer followed by HTA's M.

    Shapes: v_out, v_in, diagonal (o,); down A (r, o); up B (o, r).
    """

    adapter_layer_names = ("v_out", "v_in", "diagonal", "down", "up")
    no_decay = frozenset({"v_out", "v_in", "diagonal"})
    merge_tolerance = 2e-5

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        size = self.num_out
        vector = torch.randn(size)
        values = {"v_out": vector, "v_in": vector.clone(), "diagonal": torch.ones(size)}
        if config.rank:
            values["down"] = uniform((config.rank, size), math.sqrt(6 / size))
            values["up"] = torch.zeros(size, config.rank)
        return values

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        weight, bias = tensors["weight"], tensors["bias"]
        assert weight is not None
        return {
            "weight": self._transformed(weight.mT, adapter).mT,
            "bias": None if bias is None else self._transformed(bias, adapter),
        }

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        return self._transformed(self.base_layer(x), adapter)

    def _transformed(self, y: Tensor, adapter: str) -> Tensor:
        """M y for vectors y (..., o)."""
        v_out, v_in, diagonal = (
            getattr(self, name)[adapter].to(y.dtype) for name in ("v_out", "v_in", "diagonal")
        )
        changed = _reflected(_reflected(y, v_in) * diagonal, v_out)
        down, up = self.parameter("down", adapter), self.parameter("up", adapter)
        if down is None or up is None:
            return changed
        return changed + F.linear(F.linear(y, down.to(y.dtype)), up.to(y.dtype))


def _reflected(x: Tensor, v: Tensor) -> Tensor:
    """H(v) x for vectors x (..., d): two products of length d."""
    along = (x * v).sum(-1, keepdim=True) * (2 / (v.square().sum(-1, keepdim=True) + EPSILON))
    return x - along * v
