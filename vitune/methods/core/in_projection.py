"""The packed q, k, v of a `torch.nn.MultiheadAttention`, made adaptable like any linear layer.

The attention owns q, k, v as two parameters and calls no module for them. Here they are exposed as
a linear layer, `in_proj`; the attention then reads its parameters from that layer, and so uses the
adapted ones on PyTorch's fast path too. State dicts list them under the attention's own names.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from vitune.backbones.structure import IN_PROJECTION, unwrapped
from vitune.errors import BackboneError
from vitune.methods.core.dressed import Dressed, Keeper, dress, dressed_class, undress

SLOTS = {"weight": "in_proj_weight", "bias": "in_proj_bias"}


class InProjection(Keeper, nn.Linear):
    """A linear layer (d -> 3d) of an attention's own weight and bias."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        nn.Module.__init__(self)
        if attention._parameters[SLOTS["weight"]] is None:
            raise BackboneError(
                f"attention: got key or value widths {attention.kdim}, {attention.vdim} beside "
                f"{attention.embed_dim}, expected one width for q, k and v. "
                "Leave them out with roles=attn_out,fc1,fc2,norm1,norm2."
            )
        self.in_features, self.out_features = attention.embed_dim, 3 * attention.embed_dim
        for name, slot in SLOTS.items():
            self._parameters[name] = attention._parameters[slot]


class OpenAttention(Dressed):
    """An attention with an `in_proj` layer: it reads its parameters from that layer."""

    in_proj_weight = property(lambda self: self._modules[IN_PROJECTION].weight)
    in_proj_bias = property(lambda self: self._modules[IN_PROJECTION].bias)

    def keepers(self) -> dict[str, str]:
        return {slot: f"{IN_PROJECTION}.base_layer.{name}" for name, slot in SLOTS.items()}

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """PEFT's hook on unloading: restores the plain attention."""
        layer: Any = self._modules.pop(IN_PROJECTION)
        if merge:
            layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        undress(self)
        for name, slot in SLOTS.items():
            self.register_parameter(slot, layer.get_base_layer()._parameters[name])
        return self


def linear_view(module: nn.Module) -> nn.Module:
    """`module`, or for an attention the linear layer (adapted or not) that stands for its q, k, v.

    Raises:
        BackboneError: q, k and v are not packed.
    """
    if not isinstance(module, nn.MultiheadAttention):
        return module
    return module._modules.get(IN_PROJECTION) or InProjection(module)


def place(layer: nn.Module, target: nn.Module, target_name: str, parent: nn.Module) -> None:
    """Put `layer` in place of `target`, or on it if `target` is an attention."""
    if isinstance(target, nn.MultiheadAttention):
        assert isinstance(unwrapped(layer), InProjection)
        for slot in SLOTS.values():
            del target._parameters[slot]
        target._modules[IN_PROJECTION] = layer
        dress(target, open_class)
    else:
        setattr(parent, target_name, layer)


@functools.cache
def open_class(attention_class: type) -> type:
    """An attention class whose q, k, v are read from its `in_proj` layer."""
    return dressed_class(attention_class, OpenAttention)
