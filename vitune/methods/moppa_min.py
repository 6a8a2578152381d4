"""MoPPA-min: a small spectral branch in parallel to attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.methods.authoring import (
    BackboneError,
    BlockConfig,
    Call,
    MethodLayer,
    Site,
    VituneError,
    WrapperLayer,
    block_width,
    check_rank,
    find_sites,
    tapped,
    uniform,
)
from vitune.methods.moppa import TEMPERATURE, PriorRates, grid_of
from vitune.ops.spectral import filtered, new_tau, response, route_entropy


@dataclass
class MoPPAMinConfig(BlockConfig):
    """Attn(z) + s·Up(IDCT(R ⊙ DCT(Down(z)))) with z = LN₁(x), on patch tokens; R as in MoPPA.

    Shapes: Down (r, d); Up (d, r); per block τ (3, r), a (3, g); k (3, H, W), shared by all.
    Args:
        rank: r.
        num_groups: g, groups of channels, each with its own route; divides r.
        scale: s.
        entropy_scale: λ of the route's entropy, added to the objective until half of training.

    Raises:
        VituneError: a value out of range, or roles, which the method does not use.
        BackboneError: at injection, where attention is in windows or the grid is not known.
    Source: a reconstruction: MoPPA's abstract (arXiv 2412.02759) as a self-contained module,
        Down kaiming, Up = 0, T = 5. Prefix tokens take no part, so if the head reads the class
        token, the last block's branch has no effect and keeps its initial values.
    """

    rank: int = field(default=8)
    num_groups: int = field(default=4)
    scale: float = field(default=1.0)
    entropy_scale: float = field(default=0.0)

    method = "moppa_min"
    title = "MoPPA-min"
    source = "after MoPPA, arXiv 2412.02759 (reconstruction)"
    formula = "L·(2·d·r + 3·r + 3·g) + 3·H·W"
    counts_on_vit_b16 = (({}, 148_476),)
    shares_parameters = True
    mergeable = False
    inner_roles = ("norm1", "attn_out", "fc2")
    acts_in_windows = False
    needs_every_patch = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank)
        check_rank(self.num_groups, "num_groups")
        if self.rank % self.num_groups:
            raise VituneError(
                f"num_groups: got {self.num_groups!r}, expected a divisor of rank {self.rank}."
            )

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        return SpectralBranch

    def new_shared(self, model: nn.Module, sites: Sequence[Site]) -> nn.Module:
        known, places = find_sites(model), []
        for block in sites:
            inner = [site for site in known if site.name.startswith(f"{block.name}.")]
            ends = {site.role: site for site in inner if site.role in ("norm1", "attn_out")}
            if next(iter(ends)) != "norm1":  # sites stand in the order of the forward pass
                raise BackboneError(
                    f"{self.title} at {block.name!r}: got a block whose norm follows attention, "
                    "expected one before it. Choose another method ('vitune methods')."
                )
            places += [(block, ends["norm1"].name), (block, attention_end(ends["attn_out"]))]
        return PriorRates(model, 1, places, self.title)

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        height, across = grid_of(model, self.title)
        widths = (block_width(model, site) for site in sites)
        per_block = 3 * self.rank + 3 * self.num_groups
        return 3 * height * across + sum(2 * d * self.rank + per_block for d in widths)


class SpectralBranch(WrapperLayer):
    """A block with a filtered bottleneck beside its attention.

    Shapes: down (r, d); up (d, r); tau (3, r); route (3, g).
    """

    adapter_layer_names = ("down", "up", "tau", "route")
    no_decay = frozenset({"tau", "route"})
    patches_only = True

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        width, rank = self.width, config.rank
        return {
            "down": uniform((rank, width), math.sqrt(6 / width)),
            "up": torch.zeros(width, rank),
            "tau": new_tau(rank),
            "route": torch.randn(3, config.num_groups),
        }

    def around(self, inner: Call, adapter: str, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen: list[Tensor] = []

        def add(y: Tensor) -> Tensor:
            return self.joined(y, self._branch(seen[-1], adapter))

        norm = self.inner_module("norm1")
        out = self.get_base_layer().get_submodule(attention_end(self.inner_site("attn_out")))
        with tapped(norm, on_output=seen.append), tapped(out, on_output=add):
            return inner(x, *args, **kwargs)

    def _branch(self, z: Tensor, adapter: str) -> Tensor:
        shared, config = self.shared[adapter], self.configs[adapter]
        assert isinstance(shared, PriorRates)
        route, start = self.route[adapter], shared.num_prefix[self.site.block]
        tau = self.tau[adapter].unflatten(1, (config.num_groups, -1))  # (3, g, r/g)
        temperature = torch.full_like(route[0], TEMPERATURE)
        gain = response(shared.rates, tau, route, temperature, shared.grid).flatten(2)
        hidden = F.linear(z[:, start:], self.down[adapter].to(z.dtype))  # (b, H·W, r)
        hidden = filtered(hidden, gain, 0)
        change = F.linear(hidden, self.up[adapter].to(z.dtype)) * config.scale
        return F.pad(change, (0, 0, start, 0))  # (b, n, d)

    def penalty(self, adapter: str, progress: float, labels: Tensor | None = None) -> Tensor | None:
        scale = self.configs[adapter].entropy_scale * max(0.0, 1 - 2 * progress)
        if scale == 0:
            return None
        route = self.route[adapter]
        return -scale * route_entropy(route, torch.full_like(route[0], TEMPERATURE))


def attention_end(site: Site) -> str:
    """The module that returns the attention's result: its output linear, or the attention."""
    return site.name.rpartition(".")[0] if site.direct_weight else site.name
