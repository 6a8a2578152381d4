"""Linears, convolutions and separate biases under RLRR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.methods.authoring import (
    QKV_PARTS,
    LinearLayer,
    Site,
    Tensors,
    TrainedParameter,
    convolve,
    parts_of,
    stand_in,
)
from vitune.methods.rlrr.init import neutral_scale, new_scales
from vitune.ops import per_sample_scale_gradients, rescaled_linear, rescaled_weight


class RescaledLinear(LinearLayer):
    """A linear layer under RLRR.

    Shapes: scale_out (o, r); scale_in (p, r, i); shift (o,), o and p counting adapted parts only.
    """

    adapter_layer_names = ("scale_out", "scale_in", "shift")
    has_per_sample = True

    @property
    def no_decay(self) -> frozenset[str]:  # type: ignore[override]
        """The shift; without the residual also the scales, which decay would pull from 1 to 0."""
        around_one = any(not config.residual for config in self.configs.values())
        return frozenset(self.adapter_layer_names if around_one else ("shift",))

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        num_out, num_in = self.get_base_layer().weight.shape
        adapted = len(self._adapted_parts(config))
        out = num_out // self._num_parts(config) * adapted
        values = new_scales(config, out, num_in, adapted)
        has_shift = config.shift and not self.site.separate_bias
        return {**values, "shift": torch.zeros(out)} if has_shift else values

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        weight, bias, shift = tensors["weight"], tensors["bias"], self._shift(adapter)
        assert weight is not None
        if shift is not None:
            bias = shift if bias is None else bias + shift
        return {"weight": self._changed(weight, adapter), "bias": bias}

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        config, base = self.configs[adapter], self.get_base_layer()
        if not config.fast:
            return super().adapted_forward(x, adapter)
        scales, shift = self._scales(adapter, base.weight), self._shift(adapter)
        if not config.hadamard:
            return _add_low_rank(self.base_layer(x), x, *scales, shift)
        return rescaled_linear(
            x,
            base.weight,
            base.bias,
            *scales,
            shift,
            residual=config.residual,
            exact=config.exact,
            token_share=config.token_share,
        )

    def per_sample_gradients(self, adapter: str, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
        """Those of both scales and the shift; no weight-sized tensor exists on the way."""
        weight, config = self.get_base_layer().weight, self.configs[adapter]
        scale_out, scale_in = self._scales(adapter, weight)
        of_out, of_in = per_sample_scale_gradients(
            x, grad, weight if config.hadamard else None, scale_out, scale_in, exact=config.exact
        )
        found = {"scale_out": of_out, "scale_in": of_in}
        found["shift"] = grad.reshape(len(grad), -1, grad.shape[-1]).sum(1)  # (b, o)
        num_parts, parts = (
            self._num_parts(self.configs[adapter]),
            self._adapted_parts(self.configs[adapter]),
        )
        kept = {name: values.chunk(num_parts, 1) for name, values in found.items()}
        return {
            name: torch.cat([chunks[part] for part in parts], 1)
            for name, chunks in kept.items()
            if self.parameter(name, adapter) is not None
        }

    def _changed(self, matrix: Tensor, adapter: str) -> Tensor:
        """W' of a weight seen as a matrix (o, i)."""
        config = self.configs[adapter]
        scale_out, scale_in = self._scales(adapter, matrix)
        if config.hadamard:
            return rescaled_weight(matrix, scale_out, scale_in, residual=config.residual)
        change = scale_out.unflatten(0, (len(scale_in), -1)) @ scale_in  # (p, o/p, i)
        return (matrix + change.flatten(0, 1)).to(matrix.dtype)

    def _scales(self, adapter: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """S_out (o, r) and S_in (p, r, i): a dropped side is 1, a part not adapted is neutral."""
        config = self.configs[adapter]
        num_adapted = len(self._adapted_parts(config))
        scale_out = self.parameter("scale_out", adapter)
        scale_in = self.parameter("scale_in", adapter)
        if scale_out is None:
            assert scale_in is not None
            scale_out = scale_in.new_ones(len(matrix) // self._num_parts(config) * num_adapted, 1)
        if scale_in is None:
            scale_in = scale_out.new_ones(num_adapted, 1, matrix.shape[1])
        return self._spread(scale_out, adapter), self._spread(scale_in, adapter)

    def _shift(self, adapter: str) -> Tensor | None:
        """f (o,), with 0 for parts that are not adapted; None without a shift."""
        shift = self.parameter("shift", adapter)
        return None if shift is None else self._spread(shift, adapter)

    def _spread(self, values: Tensor, adapter: str) -> Tensor:
        """`values` of the adapted parts, set among neutral ones of the others."""
        config = self.configs[adapter]
        num_parts, parts = self._num_parts(config), self._adapted_parts(config)
        if len(parts) == num_parts:
            return values
        chunks = dict(zip(parts, values.chunk(len(parts)), strict=True))
        filler = torch.zeros_like(chunks[parts[0]])
        if values.dim() > 1:
            filler = neutral_scale(config, filler)
        return torch.cat([chunks.get(part, filler) for part in range(num_parts)])

    def _num_parts(self, config: Any) -> int:
        return 1 if config.is_whole(self.site) else self.site.num_parts

    def _adapted_parts(self, config: Any) -> tuple[int, ...]:
        return (0,) if config.is_whole(self.site) else parts_of(self.site, config.roles)


class RescaledConv2d(RescaledLinear):
    """A convolution under RLRR, its weight (O, I/g, k, l) seen as the matrix (O·k, (I/g)·l).

    Shapes: scale_out (O·k, r); scale_in (1, r, (I/g)·l); shift (O,) where the base has a bias.
    Source: RLRR (CVPR 2024) section 4.3, after its ResNet code's permutation; no shift without
        a base bias, so that BatchNorm stays the only offset. Grouped convolutions are vitune's.
    """

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        base = self.get_base_layer()
        matrix = _as_matrix(base.weight)
        values = new_scales(config, len(matrix), matrix.shape[1], 1)
        has_shift = config.shift and base.bias is not None
        return {**values, "shift": torch.zeros(base.out_channels)} if has_shift else values

    has_per_sample = False

    def functional(self, x: Tensor, tensors: Tensors) -> Tensor:
        return convolve(self.get_base_layer(), tensors, x)

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        return self.functional(x, self.adapt(self.base_tensors(), adapter))

    def _changed(self, weight: Tensor, adapter: str) -> Tensor:
        out, in_channels, height, width = weight.shape
        changed = super()._changed(_as_matrix(weight), adapter)  # (O·k, (I/g)·l)
        return changed.view(out, height, in_channels, width).transpose(1, 2).contiguous()


class ShiftedBias(TrainedParameter):
    """b' = b + f for a bias that an attention keeps beside its qkv weight.

    Shapes: shift (o,), that of the bias.
    """

    adapter_layer_names = ("shift",)
    no_decay = frozenset({"shift"})

    def new_parameters(self, config: Any, shared: nn.Module | None) -> dict[str, Tensor]:
        return {"shift": torch.zeros_like(self._slot())}

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        bias = tensors[self.parameter_name]
        assert bias is not None
        return {self.parameter_name: bias + self.shift[adapter]}


def stand_in_for_biases(model: nn.Module, site: Site, parts: Sequence[int]) -> list[ShiftedBias]:
    """The layers for those of `q_bias` and `v_bias` beside `site` that `parts` names."""
    owner = site.name.rpartition(".")[0]
    layers = [
        stand_in(model, owner, f"{QKV_PARTS[part]}_bias", ShiftedBias)
        for part in shifted_parts(parts)
    ]
    for layer in layers:
        layer.site = replace(site, name=owner)
    return layers


def shifted_parts(parts: Sequence[int]) -> tuple[int, ...]:
    """Those of q, k, v that can have a shift where the attention keeps the biases: not k.

    Its `k_bias` is a constant that no checkpoint holds; under plain softmax attention it would
    change nothing, adding one number to all scores of a query.
    """
    return tuple(part for part in parts if QKV_PARTS[part] != "k")


def _add_low_rank(
    y: Tensor, x: Tensor, scale_out: Tensor, scale_in: Tensor, shift: Tensor | None
) -> Tensor:
    """y + x (S_out S_in)ᵀ + f, part by part."""
    num_parts = len(scale_in)
    low = F.linear(x, scale_in.flatten(0, 1).to(x.dtype))  # (..., p·r)
    low = low.unflatten(-1, (num_parts, -1))  # (..., p, r)
    by_part = scale_out.unflatten(0, (num_parts, -1)).to(low.dtype)  # (p, o/p, r)
    change = torch.einsum("...pr,por->...po", low, by_part).flatten(-2)  # (..., o)
    return y + change if shift is None else y + change + shift.to(y.dtype)


def _as_matrix(weight: Tensor) -> Tensor:
    out, in_channels, height, width = weight.shape
    return weight.transpose(1, 2).reshape(out * height, in_channels * width)
