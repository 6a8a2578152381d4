"""What methods on linear layers share: the forward pass, and which layers qualify."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.backbones.sites import Site
from vitune.errors import BackboneError
from vitune.methods.core.base_layers import require_plain_linear
from vitune.methods.core.in_projection import linear_view
from vitune.methods.core.layer import MethodLayer, Tensors
from vitune.methods.core.roles import QKV_PARTS, require_all_parts

BLOCK_LINEARS = (*QKV_PARTS, "attn_out", "fc1", "fc2")
"""The linears of a transformer block."""


class LinearLayer(MethodLayer):
    """y = x W'ᵀ + b' with the W', b' that `adapt` makes of a linear layer's own.

    Shapes: x (..., i); W' (o, i); b' (o,) or None; y (..., o).
    """

    def functional(self, x: Tensor, tensors: Tensors) -> Tensor:
        weight, bias = (None if t is None else t.to(x.dtype) for t in tensors.values())
        return F.linear(x, weight, bias)  # type: ignore[arg-type]

    @property
    def num_out(self) -> int:
        """Output features of the layer."""
        return int(self.get_base_layer().weight.shape[0])

    @property
    def num_in(self) -> int:
        """Input features of the layer."""
        return int(self.get_base_layer().weight.shape[1])


def require_linear(
    site: Site,
    module: nn.Module,
    by: str,
    *,
    roles: Sequence[str] | None = None,
    changes_bias: bool = True,
    is_called: bool = False,
) -> None:
    """Refuse a site whose layer `by` cannot adapt.

    Args:
        roles: given if `by` takes a fused qkv only as a whole; they must not name a part.
        changes_bias: the method gives the layer a bias.
        is_called: the method needs the layer's own `forward`, not only its weight.

    Raises:
        BackboneError: no linear layer, one whose owner reads its weight or keeps its bias, or a
            fused qkv of which `roles` names a part.
    """
    named = f"{by} at {site.name!r} ({site.role})"
    if not isinstance(module, nn.Linear):
        raise BackboneError(
            f"{named}: got {type(module).__name__!r}, expected a Linear. Leave the role out with "
            "roles=..., or choose another method."
        )
    if not is_called:
        require_plain_linear(site, module, by)
    if changes_bias and site.separate_bias:
        raise BackboneError(
            f"{named}: got an attention that adds its qkv bias itself, expected a plain linear. "
            "Leave it out with roles=attn_out,fc1,fc2."
        )
    if is_called and site.direct_weight:
        raise BackboneError(
            f"{named}: got an attention that reads the layer's weight itself, expected one that "
            "calls the layer. Leave the role out with roles=..., or choose another method."
        )
    if site.role == "qkv":
        require_all_parts(site, roles, by)


def linear_shape(model: nn.Module, site: Site) -> tuple[int, int]:
    """(out_features, in_features) of the linear layer at `site`."""
    linear: Any = linear_view(model.get_submodule(site.name))
    return int(linear.out_features), int(linear.in_features)


def has_bias(model: nn.Module, site: Site) -> bool:
    """Whether the linear layer at `site` has a bias of its own."""
    return getattr(linear_view(model.get_submodule(site.name)), "bias", None) is not None


def uniform(shape: tuple[int, ...], bound: float) -> Tensor:
    """U(-bound, bound)."""
    return (torch.rand(shape) * 2 - 1) * bound


def xavier_uniform(shape: tuple[int, ...], fan_in: int, fan_out: int) -> Tensor:
    """U(±√(6 / (fan_in + fan_out)))."""
    return uniform(shape, math.sqrt(6 / (fan_in + fan_out)))


def linear_default(shape: tuple[int, ...], fan_in: int) -> Tensor:
    """U(±1/√fan_in), what `nn.Linear` gives its weight (kaiming_uniform_ with a = √5)."""
    return uniform(shape, 1 / math.sqrt(fan_in))
