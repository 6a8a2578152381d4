"""The packed q, k, v of a `torch.nn.MultiheadAttention`, made adaptable like any linear layer.

The attention owns q, k, v as two parameters and calls no module for them. Here they are shown as a
linear layer of their own, `in_proj`; the attention then reads its parameters from that layer, and
so meets the adapted ones on PyTorch's fast path too. The parameters stay the attention's own, under
their own names.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from vitune.backbones.structure import unwrapped
from vitune.errors import BackboneError
from vitune.methods._dressed import Dressed, dress, own_tensor, read_elsewhere, undress

CHILD = "in_proj"
SLOTS = {"weight": "in_proj_weight", "bias": "in_proj_bias"}


class InProjection(nn.Linear):
    """A linear layer (d -> 3d) whose weight and bias lie in the attention that owns them."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        nn.Module.__init__(self)
        if own_tensor(attention, SLOTS["weight"]) is None:
            raise BackboneError(
                f"attention: got key or value widths {attention.kdim}, {attention.vdim} beside "
                f"{attention.embed_dim}, expected one width for q, k and v. "
                "Leave them out with roles=attn_out,fc1,fc2,norm1,norm2."
            )
        self.in_features, self.out_features = attention.embed_dim, 3 * attention.embed_dim
        self._owner = (attention,)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The attention's own `in_proj_weight` (3d, d)."""
        weight = own_tensor(self._owner[0], SLOTS["weight"])
        assert weight is not None
        return weight

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The attention's own `in_proj_bias` (3d,), or None."""
        return own_tensor(self._owner[0], SLOTS["bias"])

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Write through to the attention; this is how merging puts its result in place."""
        self._owner[0]._parameters[SLOTS[name]] = param


class _OpenAttention(Dressed):
    """What an attention with an `in_proj` layer does differently: it reads that layer."""

    in_proj_weight = read_elsewhere(SLOTS["weight"], lambda self: self._modules[CHILD].weight)
    in_proj_bias = read_elsewhere(SLOTS["bias"], lambda self: self._modules[CHILD].bias)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """PEFT's hook on unloading: the plain attention again."""
        attention: Any = self
        layer = attention._modules.pop(CHILD)
        if merge:
            layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        undress(attention)
        return attention


def linear_view(module: nn.Module) -> nn.Module:
    """`module`, or for an attention the linear layer (adapted or not) that stands for its q, k, v.

    Raises:
        BackboneError: q, k and v are not packed.
    """
    if not isinstance(module, nn.MultiheadAttention):
        return module
    return module._modules.get(CHILD) or InProjection(module)


def place(layer: nn.Module, target: nn.Module, target_name: str, parent: nn.Module) -> None:
    """Put `layer` where `target` was, or on the attention that `target` is."""
    if isinstance(target, nn.MultiheadAttention):
        assert isinstance(unwrapped(layer), InProjection)
        target._modules[CHILD] = layer
        dress(target, _open_class)
    else:
        setattr(parent, target_name, layer)


@functools.cache
def _open_class(attention_class: Any) -> type:
    named = {"__module__": attention_class.__module__}
    return type(attention_class.__name__, (_OpenAttention, attention_class), named)
