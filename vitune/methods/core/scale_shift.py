"""y ← γ ⊙ y + β per channel, folded into the layer that makes y.

Source: SSF (NeurIPS 2022) eq. 2; RLRR uses it after LayerNorms and the patch embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm.layers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.backbones.sites import Site
from vitune.errors import BackboneError
from vitune.methods.core.base_layers import (
    call_with,
    convolve,
    require_plain_linear,
    scales_with_weight,
)
from vitune.methods.core.layer import MethodLayer, Tensors

INIT_STD = 0.02
LAST_AXIS_NORMS = (nn.LayerNorm.forward, timm.layers.LayerNorm.forward)
"""Forward passes that are `layer_norm` over the last axis; others are called unchanged."""


class ScaleShift(MethodLayer):
    """γ ⊙ f(x) + β for a layer f with one weight and bias per output channel.

    Shapes: scale γ and shift β (c,), c the base layer's output channels.
    """

    adapter_layer_names = ("scale", "shift")
    no_decay = frozenset({"scale", "shift"})
    has_per_sample = True

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        channels = self.num_channels()
        if config.identity_at_init:
            return {"scale": torch.ones(channels), "shift": torch.zeros(channels)}
        return {
            "scale": torch.randn(channels) * INIT_STD + 1,
            "shift": torch.randn(channels) * INIT_STD,
        }

    def num_channels(self) -> int:
        """Output channels of the base layer."""
        return int(self.get_base_layer().weight.shape[0])

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        scale, shift, weight = self.scale[adapter], self.shift[adapter], tensors["weight"]
        assert weight is not None
        bias = tensors["bias"]
        return {
            "weight": weight * scale.view(-1, *[1] * (weight.dim() - 1)),
            "bias": shift if bias is None else bias * scale + shift,
        }

    def per_sample_gradients(self, adapter: str, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
        """dγ = Σ dy ⊙ f(x), dβ = Σ dy, over tokens or positions."""
        y = self.base_layer(x)
        if isinstance(self.get_base_layer(), nn.Conv2d):
            y, grad = y.flatten(2).mT, grad.flatten(2).mT  # (b, n, c)
        y, grad = (t.reshape(len(t), -1, t.shape[-1]) for t in (y, grad))  # (b, n, c)
        return {"scale": (grad * y).sum(1), "shift": grad.sum(1)}


class ScaleShiftNorm(ScaleShift):
    """LayerNorm followed by γ, β: one LayerNorm with weight γ ⊙ w and bias γ ⊙ b + β."""

    def num_channels(self) -> int:
        return int(self.get_base_layer().normalized_shape[-1])

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        if tensors["weight"] is None:
            tensors = {**tensors, "weight": torch.ones_like(self.scale[adapter])}
        return super().adapt(tensors, adapter)

    def functional(self, x: Tensor, tensors: Tensors) -> Tensor:
        base = self.get_base_layer()
        if type(base).forward not in LAST_AXIS_NORMS:
            return call_with(base, tensors, x)
        dtype = x.dtype if base.weight is None else base.weight.dtype
        weight, bias = (None if t is None else t.to(dtype) for t in tensors.values())
        return F.layer_norm(x, base.normalized_shape, weight, bias, base.eps)


class ScaleShiftLinear(ScaleShift):
    """A linear layer followed by γ, β."""

    def functional(self, x: Tensor, tensors: Tensors) -> Tensor:
        weight, bias = (None if t is None else t.to(x.dtype) for t in tensors.values())
        return F.linear(x, weight, bias)  # type: ignore[arg-type]

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        y = self.base_layer(x)  # (..., o)
        return (y * self.scale[adapter] + self.shift[adapter]).to(y.dtype)


class ScaleShiftConv(ScaleShift):
    """A convolution followed by γ, β; unfolded in training: its input needs no gradient."""

    def functional(self, x: Tensor, tensors: Tensors) -> Tensor:
        return convolve(self.get_base_layer(), tensors, x)

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        y = self.base_layer(x)  # (b, c, h, w)
        scale, shift = self.scale[adapter].view(-1, 1, 1), self.shift[adapter].view(-1, 1, 1)
        return (y * scale + shift).to(y.dtype)


def scale_shift_class(site: Site, module: nn.Module, method: str) -> type[ScaleShift]:
    """The scale-and-shift layer for `module`.

    Raises:
        BackboneError: there is none for its kind, or the scale could not be folded into its weight.
    """
    if isinstance(module, nn.LayerNorm):
        return ScaleShiftNorm
    if isinstance(module, nn.Linear):
        require_plain_linear(site, module, method)
        return ScaleShiftLinear
    if isinstance(module, nn.Conv2d):
        if not scales_with_weight(module):
            raise BackboneError(
                f"{method} at {site.name!r} ({site.role}): got {type(module).__name__!r}, which "
                "standardises its weight and so cancels a scale on it, expected a convolution that "
                "scales with its weight. Leave the role out with roles=..., or choose another"
                " method."
            )
        return ScaleShiftConv
    raise BackboneError(
        f"{method} at {site.name!r} ({site.role}): got {type(module).__name__!r}, expected a "
        "LayerNorm, Conv2d or Linear. Leave the role out with roles=..., or choose another method."
    )
