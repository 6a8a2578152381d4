"""MoPPA: a mixture of heat, wave and Poisson filters on the tokens before attention, plus RLRR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from vitune.backbones.sites import Site, token_layout
from vitune.methods.authoring import (
    ALL_LINEAR,
    OPTIONS,
    BackboneError,
    Call,
    MethodLayer,
    VituneError,
    WrapperLayer,
    prefix_tokens,
)
from vitune.methods.rlrr.config import RLRRConfig
from vitune.ops.spectral import filtered, new_tau, response, route_entropy

ROLES = ("v", "attn_out", "fc1", "fc2", "norm2", "patch_embed", "final_norm")
GROUP_WIDTH = 64
TEMPERATURE = 5.0


@dataclass
class MoPPAConfig(RLRRConfig):
    """x ← x + Attn(LN₁([prefix; IDCT(R ⊙ DCT(X))])) with R = Σ_p π_p f_p, RLRR on v, o, fc1, fc2.

    f is exp(−ω² t), cos(ω² t) or t, t = relu(k τ), for heat, wave and Poisson; π = softmax(a / T)
    for each group of channels. SSF follows LN₂, the final norm and the patch embedding.

    Shapes: k (3, H, W, g), shared by all blocks; per block τ (3, c), a (3, g), T (g,); g groups
        of c channels.
    Args:
        num_groups: g; None gives groups of 64 channels, one group on a narrower network.
        entropy_scale: λ of the route's entropy, which is added to the objective until half of
            training; the code uses 0 to .05.

    Raises:
        VituneError: groups that do not divide the width, or a value RLRR refuses.
        BackboneError: at injection, if a block's patches do not form the single known grid.
    Source: MoPPA (arXiv 2412.02759) has only its abstract public; this is a reconstruction after
        the code of its apparent successor MoPDO, with any grid in place of 14 × 14.
    """

    num_groups: int | None = field(default=None)
    entropy_scale: float = field(default=0.0)

    identity_args = MappingProxyType({})
    method = "moppa"
    title = "MoPPA"
    source = "MoPPA, arXiv 2412.02759 (reconstruction)"
    formula = "3·H·W·g + L·(3·c + 4·g) + RLRR on v, o, fc1, fc2 + SSF on 2 + L places"
    counts_on_vit_b16 = (({}, 224_976),)
    shares_parameters = True
    combines = False
    needs_every_patch = True
    narrowed_by = OPTIONS - {ALL_LINEAR}
    mergeable = False
    identity_at_init = False

    def __post_init__(self) -> None:
        if self.roles is None:
            self.roles = ROLES
        super().__post_init__()

    @classmethod
    def reason_against(cls, option: str) -> str:
        """Why the method does not support an option."""
        return f"{cls.title} filters the input of attention as well as adapting linears"

    def choose(self, sites: Sequence[Site]) -> Sequence[Site]:
        chosen = {site.name for site in super().choose(sites)}
        entrances = _entrances(sites, {site.block for site in sites if site.name in chosen})
        return [site for site in sites if site.name in chosen or site in entrances]

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        return FilteredNorm if site.role == "norm1" else super().layer_class(site, module)

    def new_shared(self, model: nn.Module, sites: Sequence[Site]) -> nn.Module:
        places = [(site, site.name) for site in sites if site.role == "norm1"]
        if not places:
            raise BackboneError(
                f"{self.title}: got no norm before attention, expected one to filter. Change "
                "target_modules, exclude_modules or modules_to_save."
            )
        norm = model.get_submodule(places[0][1])
        num_groups = self.groups(int(norm.normalized_shape[-1]))  # type: ignore[index]
        return PriorRates(model, num_groups, places, self.title)

    def groups(self, width: int) -> int:
        """The number of channel groups on a network of `width`."""
        usual = max(1, width // GROUP_WIDTH)
        number = usual if self.num_groups is None else self.num_groups
        if number < 1 or width % number:
            raise VituneError(
                f"num_groups: got {number!r}, expected a divisor of {width}, the token's width."
            )
        return number

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        norms = [site for site in sites if site.role == "norm1"]
        rest = super().num_parameters(model, [site for site in sites if site.role != "norm1"])
        width = int(model.get_submodule(norms[0].name).normalized_shape[-1])  # type: ignore[index]
        height, across = grid_of(model, self.title)
        groups = self.groups(width)
        return rest + 3 * height * across * groups + len(norms) * (3 * width // groups + 4 * groups)


class PriorRates(nn.Module):
    """k_p[n, m, g], shared by all blocks, and the positions of each block's patch tokens."""

    def __init__(
        self, model: nn.Module, num_groups: int, places: Sequence[tuple[Site, str]], by: str
    ) -> None:
        super().__init__()
        self.grid = grid_of(model, by)
        self.num_prefix = prefix_tokens(model, places, by, self.grid)
        self.rates = nn.Parameter(torch.ones(3, *self.grid, num_groups))


class FilteredNorm(WrapperLayer):
    """A norm that reads filtered tokens.

    Shapes: tau (3, c); route a (3, g); temperature T (g,).
    """

    adapter_layer_names = ("tau", "route", "temperature")
    no_decay = frozenset({"tau", "route", "temperature"})

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        assert isinstance(shared, PriorRates)
        groups = shared.rates.shape[-1]
        channels = int(self.get_base_layer().normalized_shape[-1]) // groups
        return {
            "tau": new_tau(channels),
            "route": torch.randn(3, groups),
            "temperature": torch.full((groups,), TEMPERATURE),
        }

    def around(self, inner: Call, adapter: str, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        shared = self.shared[adapter]
        assert isinstance(shared, PriorRates)
        tau = self.tau[adapter].unsqueeze(1)  # (3, 1, c)
        gain = response(
            shared.rates, tau, self.route[adapter], self.temperature[adapter], shared.grid
        )
        changed = filtered(x, gain.flatten(2), shared.num_prefix[self.site.block])
        if self.delta_noise is None:
            return inner(changed, *args, **kwargs)
        base = inner(x, *args, **kwargs)
        return self.joined(base, inner(changed, *args, **kwargs) - base)

    def penalty(self, adapter: str, progress: float, labels: Tensor | None = None) -> Tensor | None:
        scale = self.configs[adapter].entropy_scale * max(0.0, 1 - 2 * progress)
        if scale == 0:
            return None
        return -scale * route_entropy(self.route[adapter], self.temperature[adapter])


def grid_of(model: nn.Module, by: str) -> tuple[int, int]:
    """Patches down and across.

    Raises:
        BackboneError: the model takes any image size.
    """
    grid = token_layout(model).grid
    if grid is None:
        raise BackboneError(
            f"{by}: got a backbone without a fixed patch grid, expected one with a known image "
            "size. Choose another method ('vitune methods')."
        )
    return grid


def _entrances(sites: Sequence[Site], blocks: set[int | None]) -> set[Site]:
    """The norm before attention of each of `blocks`; `sites` in the order of the forward pass."""
    norms: set[Site] = set()
    attended: set[int | None] = set()
    for site in sites:
        if site.role == "attn_out":
            attended.add(site.block)
        elif site.role == "norm1" and site.block in blocks - attended:
            norms.add(site)
    if not norms or any(site.windowed for site in norms):
        raise BackboneError(
            "MoPPA: got a backbone that attends in windows or has no norm before attention, "
            "expected a plain ViT. Choose another method ('vitune methods')."
        )
    return norms
