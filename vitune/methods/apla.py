"""APLA: a fixed random choice of the attention projection's outputs is trained in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitune.methods.authoring import (
    LinearLayer,
    MethodConfig,
    MethodLayer,
    Site,
    Tensors,
    VituneError,
    check_rank,
    has_bias,
    linear_shape,
    require_linear,
)
from vitune.ops.partial_linear import partial_linear, partial_weight


@dataclass
class APLAConfig(MethodConfig):
    """W_O[I] ← trained, b_O[I] ← trained, I a set of r outputs drawn once for each block.

    Shapes: rows (r, i); row_bias (r,); indices (r,), stored with the adapter.
    Args:
        rank: r, the number of outputs; at most the width.
        seed: of the random choice, together with the block's index.

    Raises:
        VituneError: rank is larger than the number of outputs.
        BackboneError: at injection, where the attention output is not a linear layer.
    Source: APLA (2025) and its code. The paper's columns of W_O in x W are rows of PyTorch's
        weight.
    """

    rank: int = field(default=8)
    seed: int = field(default=0)

    method = "apla"
    title = "APLA"
    source = "APLA: Attention Projection Layer Adaptation, 2025"
    formula = "L·r·(d + 1)"
    counts_on_vit_b16 = (({}, 73_824), ({"rank": 32}, 295_296), ({"rank": 768}, 7_087_104))
    default_roles = ("attn_out",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank)

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        require_linear(site, module, self.title, changes_bias=False)
        if self.rank > module.out_features:  # type: ignore[operator]
            raise VituneError(
                f"rank: got {self.rank!r}, expected at most {module.out_features}, the outputs of "
                f"{site.name!r}."
            )
        return PartialLinear

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        return sum(
            self.rank * (linear_shape(model, site)[1] + has_bias(model, site)) for site in sites
        )


class PartialLinear(LinearLayer):
    """A linear layer with r of its outputs trained.

    Shapes: rows (r, i); row_bias (r,) where the base has a bias; indices (r,).
    """

    adapter_layer_names = ("rows", "row_bias")
    other_param_names = ("indices",)
    no_decay = frozenset({"row_bias"})

    def new_buffers(self, config: Any) -> Mapping[str, Tensor]:
        # A large factor, so that seed 1 of one block is not seed 0 of the next. On the CPU, because
        # a GPU would draw other rows for the same seed.
        mixed = 1_000_003 * config.seed + (self.site.block or 0)
        generator = torch.Generator().manual_seed(mixed % 2**64)
        with torch.device("cpu"):
            order = torch.randperm(self.num_out, generator=generator)
        return {"indices": order[: config.rank].sort().values}

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        base, indices = self.original_tensors(), self.new_buffers(config)["indices"]
        weight, bias = base["weight"], base["bias"]
        assert weight is not None
        indices = indices.to(weight.device)
        values = {"rows": weight.detach()[indices].clone()}
        if bias is not None:
            values["row_bias"] = bias.detach()[indices].clone()
        return values

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        rows, row_bias = self.rows[adapter], self.parameter("row_bias", adapter)
        weight = self._replaced(tensors, "weight", rows, adapter)
        bias = tensors["bias"]
        if row_bias is not None:
            bias = self._replaced(tensors, "bias", row_bias, adapter)
        return {"weight": weight, "bias": bias}

    def _replaced(self, tensors: Tensors, name: str, rows: Tensor, adapter: str) -> Tensor:
        """W with rows replaced; the change of another adapter to these rows is added."""
        current, indices = tensors[name], self.indices[adapter]
        original = self.original_tensors()[name]
        assert current is not None and original is not None
        if current is not original:
            rows = current[indices] + (rows - original[indices])
        return partial_weight(current, rows, indices)

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        base = self.get_base_layer()
        row_bias = self.parameter("row_bias", adapter)
        indices = self.indices[adapter]
        return partial_linear(x, base.weight, base.bias, self.rows[adapter], row_bias, indices)
