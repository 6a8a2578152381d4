"""SSF: scale and shift of every layer's output, y ← γ ⊙ y + β."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor, nn

from vitune.methods.authoring import (
    LINEAR_ROLES,
    NORM_ROLES,
    MethodConfig,
    MethodLayer,
    Site,
    check_choice,
    choose_sites,
    linear_view,
    require_linear,
    scale_shift_class,
)


@dataclass
class SSFConfig(MethodConfig):
    """γ ⊙ y + β after the patch embedding, every LayerNorm and every linear of the blocks.

    Shapes: γ, β (c,), c the output channels of the layer.
    Args:
        init: "paper" draws γ ~ N(1, .02), β ~ N(0, .02); "identity" starts at γ = 1, β = 0.

    Raises:
        VituneError: another init, or roles that name a part of a fused qkv.
        BackboneError: at injection, where a layer has no scale and shift.
    Source: SSF (NeurIPS 2022) eq. 2 and its code. Convolutions between transformer blocks only
        where roles name "conv". Not after the norm inside a Swin's patch
        embedding, nor on the norm of its patch merging, for which there is no site.
    """

    init: str = field(default="paper")

    identity_args = MappingProxyType({"init": "identity"})
    method = "ssf"
    title = "SSF"
    source = "Scaling & Shifting Your Features, NeurIPS 2022"
    formula = "Σ 2·out over patch embedding, norms and linears"
    counts_on_vit_b16 = (({}, 205_824),)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("init", self.init, ("paper", "identity"))

    @property
    def identity_at_init(self) -> bool:
        return self.init == "identity"

    def choose(self, sites: Sequence[Site]) -> Sequence[Site]:
        is_transformer = any(site.role == "attn_out" for site in sites)
        convolutions = () if is_transformer else ("conv",)
        roles = self.roles or ("patch_embed", *NORM_ROLES, *LINEAR_ROLES, *convolutions)
        return choose_sites(sites, roles, self.blocks, named=self.roles is not None, by="SSF")

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        if isinstance(module, nn.Linear):
            require_linear(site, module, "SSF", roles=self.roles)
        return scale_shift_class(site, module, "SSF")

    def decayed_by_authors(self, place: str, name: str, parameter: Tensor) -> bool:
        """Matrices alone: vectors are in the group without decay there."""
        return parameter.dim() > 1

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        modules = [linear_view(model.get_submodule(site.name)) for site in sites]
        return 2 * sum(_num_channels(module) for module in modules)


def _num_channels(module: nn.Module) -> int:
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[-1])
    assert isinstance(module.weight, Tensor)
    return len(module.weight)
