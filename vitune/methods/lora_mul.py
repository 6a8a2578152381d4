"""PACE's base adapters: multiplicative or additive LoRA, with or without a prompt-like bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.methods.authoring import (
    BLOCK_LINEARS,
    Counts,
    LinearLayer,
    MethodConfig,
    MethodLayer,
    Roles,
    Site,
    Tensors,
    check_rank,
    has_bias,
    linear_shape,
    require_linear,
    xavier_uniform,
)
from vitune.ops import rescaled_linear, rescaled_weight


@dataclass
class LoRAMulVPTAddConfig(MethodConfig):
    """W' = W ⊙ (1 + A B), b' = b ⊙ (1 + δ) + W (p q), on every linear of the blocks.

    Shapes: per linear A (o, r); B (r, i); δ (o,); p (i, r); q (r, 1); δ only where b exists.
    Args:
        rank: r; the paper's tasks use 10 to 24.

    Raises:
        VituneError: a rank below 1, or roles that name a part of a fused qkv.
        BackboneError: at injection, where a site is not a linear layer.
    Source: PACE (NeurIPS 2024), its base adapter and code: A, δ, p = 0; B, q xavier_uniform.
    """

    rank: int = field(default=10)

    method = "lora_mul_vpt_add"
    title = "LoRA_mul + VPT_add"
    source = "PACE, NeurIPS 2024 (base adapter)"
    formula = "Σ r·(out + 2·in) + r + out over linears"
    counts_on_vit_b16: ClassVar[Counts] = (({"rank": 2}, 506_976), ({}, 2_203_104))
    default_roles: ClassVar[Roles] = BLOCK_LINEARS
    needs_all_roles = False
    parts: ClassVar[frozenset[str]] = frozenset({"mul", "prompt"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank)

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        require_linear(site, module, self.title, roles=self.roles)
        return PromptedLinear

    def decayed_by_authors(self, place: str, name: str, parameter: Tensor) -> bool:
        """Everything: the authors' code has one group of all trained parameters."""
        return True

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        return sum(self._count(*linear_shape(model, site), has_bias(model, site)) for site in sites)

    def _count(self, num_out: int, num_in: int, has_bias: bool) -> int:
        low_rank = self.rank * (num_out + num_in) if self.parts & {"mul", "add"} else 0
        offset = num_out if "add" in self.parts or ("mul" in self.parts and has_bias) else 0
        prompt = self.rank * (num_in + 1) if "prompt" in self.parts else 0
        return low_rank + offset + prompt


@dataclass
class LoRAAddConfig(LoRAMulVPTAddConfig):
    """W' = W + A B, b' = b + δ, on every linear of the blocks.

    Source: PACE (NeurIPS 2024), "LoRA_add": A, δ = 0; B xavier_uniform.
    """

    method = "lora_add"
    title = "LoRA_add"
    formula = "Σ r·(out + in) + out over linears"
    counts_on_vit_b16 = (({"rank": 8}, 1_262_592),)
    parts = frozenset({"add"})


@dataclass
class VPTAddConfig(LoRAMulVPTAddConfig):
    """b' = b + W (p q), on every linear of the blocks.

    Source: PACE (NeurIPS 2024), "VPT_add": p = 0; q xavier_uniform.
    """

    rank: int = field(default=1)

    method = "vpt_add"
    title = "VPT_add"
    formula = "Σ r·(in + 1) over linears"
    counts_on_vit_b16 = (({}, 64_560),)
    parts = frozenset({"prompt"})


class PromptedLinear(LinearLayer):
    """A linear layer under one of PACE's base adapters.

    Shapes: up A (o, r); down B (r, i); offset δ (o,); prompt p (i, r); mixer q (r, 1).
    """

    adapter_layer_names = ("up", "down", "offset", "prompt", "mixer")
    no_decay = frozenset({"offset"})
    merge_tolerance = 2e-5

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        num_out, num_in, rank, parts = self.num_out, self.num_in, config.rank, config.parts
        values = {}
        if parts & {"mul", "add"}:
            values["up"] = torch.zeros(num_out, rank)
            values["down"] = xavier_uniform((rank, num_in), num_in, rank)
        if "add" in parts or ("mul" in parts and self.get_base_layer().bias is not None):
            values["offset"] = torch.zeros(num_out)
        if "prompt" in parts:
            values["prompt"] = torch.zeros(num_in, rank)
            values["mixer"] = xavier_uniform((rank, 1), 1, rank)
        return values

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        weight, bias = tensors["weight"], tensors["bias"]
        assert weight is not None
        shift = self._shift(weight, bias, adapter)
        if shift is not None:
            bias = shift if bias is None else bias + shift
        up, down = self.parameter("up", adapter), self.parameter("down", adapter)
        if up is not None and down is not None:
            if "mul" in self.configs[adapter].parts:
                weight = rescaled_weight(weight, up, down.unsqueeze(0))
            else:
                weight = (weight + up @ down).to(weight.dtype)
        return {"weight": weight, "bias": bias}

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        base, config = self.get_base_layer(), self.configs[adapter]
        shift = self._shift(base.weight, base.bias, adapter)
        up, down = self.parameter("up", adapter), self.parameter("down", adapter)
        if up is not None and down is not None and "mul" in config.parts:
            down = down.unsqueeze(0)
            return rescaled_linear(x, base.weight, base.bias, up, down, shift)
        y = self.base_layer(x)
        if up is not None and down is not None:
            y = y + F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype))
        return y if shift is None else y + shift.to(y.dtype)

    def _shift(self, weight: Tensor, bias: Tensor | None, adapter: str) -> Tensor | None:
        """What is added to the bias (o,)."""
        shift, config = self.parameter("offset", adapter), self.configs[adapter]
        if shift is not None and "mul" in config.parts and bias is not None:
            shift = shift * bias
        prompt, mixer = self.parameter("prompt", adapter), self.parameter("mixer", adapter)
        if prompt is None or mixer is None:
            return shift
        pushed = weight.to(prompt.dtype) @ (prompt @ mixer).squeeze(-1)  # (o,)
        return pushed if shift is None else shift + pushed
