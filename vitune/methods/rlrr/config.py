"""RLRR: residual-based low-rank rescaling, W' = W ⊙ (1 + S_out S_in), b' = b + f."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

from vitune.methods.authoring import (
    LINEAR_ROLES,
    NORM_ROLES,
    AdapterState,
    BackboneError,
    Counts,
    MethodConfig,
    MethodLayer,
    Site,
    choose_sites,
    coverage_notice,
    linear_view,
    parts_of,
    require_all_parts,
    require_plain_linear,
    scale_shift_class,
    weight_coverage,
)
from vitune.methods.rlrr.arithmetic import combine_states
from vitune.methods.rlrr.layers import (
    RescaledConv2d,
    RescaledLinear,
    shifted_parts,
    stand_in_for_biases,
)
from vitune.methods.rlrr.refusals import check_roles, check_values, check_variant


@dataclass
class RLRRConfig(MethodConfig):
    """W' = W ⊙ (1 + S_out S_in), b' = b + f on linears; γ ⊙ y + β after norms and patch embedding.

    Shapes: per linear S_out (o, r), S_in (r, i) for each fused part, f (o,); γ, β (c,).
    Args:
        roles: what to adapt instead of everything below; "attn", "mlp" and "norms" are groups.
            Without it all linears; convolutions only where a backbone has no linears to adapt.
        rank: r; r = 1 is the paper's main method.
        hadamard: False gives the paper's "w/o W", W' = W + S_out S_in.
        sides: "both"; "out" or "in" keeps one vector and drops the other (rank 1 only).
        residual: False drops "W +": W' = W ⊙ (S_out S_in).
        shift: whether linears get f.
        norms: "scale_shift", or None to leave LayerNorms alone.
        patch_embed: whether the patch embedding gets γ, β; None: yes on a plain ViT, no on a
            hierarchical one, as in the paper's code.
        init: what the scales are at step 0. σ = 2/√i is the paper's ‖ΔW‖/‖W‖.
            "paper": S_in ~ U(±√(6/i)), S_out ~ U(±√(6/r)): not the identity, ‖ΔW‖ ≈ σ‖W‖.
            "identity": S_out = 0, S_in as above, γ = 1, β = 0: exactly the pre-trained function;
            S_out has a gradient at the first step, S_in from the second.
            "normal", "uniform", "constant": S_out and S_in drawn alike, with variance σ/√r, in
            "constant" (rank 1 only) all equal to √σ: ‖ΔW‖ ≈ σ‖W‖.
            "zero": all scales 0. With both sides this is a stationary point: no scale ever gets a
            gradient, only shifts and norms train; refused unless `allow_stationary`.
            γ ~ N(1, .02) and β ~ N(0, .02) in all but "identity" and a "zero" with residual.
            One side has the strength √(2/i) in place of σ, and "identity" starts it at 0.
            Without the residual the first component is 1 + noise, the noise ~ N(0, .02) in
            "paper", none in "identity", of strength √(2/i) else; the others as above. Without W,
            S_out = 0 and S_in has the strength √(2/i), or ΔW would be as large as W.
        fused_qkv: "split" gives q, k, v of a fused qkv their own S_in; "whole" treats it as one
            linear; None: whole in windowed attention, as in the paper, where all three are
            adapted; else split.
        allow_stationary: accept init="zero" where no scale can ever move.
        fast: False computes the reference of `vitune.ops` instead of the memory-lean version.
        exact: every product of the fast version in the input's own number format; else the one
            that only the scales' gradient needs is in bfloat16 where that is faster.
        token_share: below 1, linears estimate the scales' gradient from so many of the tokens,
            drawn by importance (`vitune.ops.sample_tokens`): faster, unbiased, noisier.

    Raises:
        VituneError: a value outside those named here, or two that contradict each other.
        BackboneError: at injection, if a requested role is not in the backbone.
    Source: RLRR (CVPR 2024) eq. 5, Table 6 (sides, residual), 10 (init), 11 (w/o W), appendix C
        (rank), H (combination). Reconstructed where the paper is silent: the 1/√r for r > 1, all
        that `init` says of one side, of no residual and of no W.
    """

    rank: int = field(default=1)
    hadamard: bool = field(default=True)
    sides: str = field(default="both")
    residual: bool = field(default=True)
    shift: bool = field(default=True)
    norms: str | None = field(default="scale_shift")
    patch_embed: bool | None = field(default=None)
    init: str = field(default="paper")
    fused_qkv: str | None = field(default=None)
    allow_stationary: bool = field(default=False)
    fast: bool = field(default=True)
    exact: bool = field(default=False)
    token_share: float = field(default=1.0, metadata={"expected": "a share in (0, 1]"})

    identity_args = MappingProxyType({"init": "identity"})
    method = "rlrr"
    title = "RLRR"
    source = "Residual-based Low-Rank Rescaling, CVPR 2024"
    formula = "Σ over linears of r·(parts·in + out) + out, Σ 2·out over norms and patch embedding"
    counts_on_vit_b16: ClassVar[Counts] = (
        ({}, 288_768),
        ({"rank": 2}, 454_656),
        ({"rank": 4}, 786_432),
        ({"rank": 8}, 1_449_984),
        ({"sides": "out"}, 205_824),
    )
    combines = True
    speed_arguments: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "fast": {"token_share": 0.25},
        "fastest": {"token_share": 0.25},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_values(self)
        check_variant(self)
        check_roles(self)

    @property
    def identity_at_init(self) -> bool:
        return self.init == "identity" or (self.init == "zero" and self.residual)

    def choose(self, sites: Sequence[Site]) -> Sequence[Site]:
        present = {site.role for site in sites}
        is_plain = "attn_out" in present and not any(
            site.windowed or site.role == "reduction" for site in sites
        )
        adapts_patches = is_plain if self.patch_embed is None else self.patch_embed
        roles = self.roles or (
            *(LINEAR_ROLES if "fc1" in present else ("conv",)),
            *(NORM_ROLES if self.norms else ()),
            *(("patch_embed",) if adapts_patches else ()),
        )
        return choose_sites(sites, roles, self.blocks, named=self.roles is not None, by=self.title)

    def coverage(self, model: nn.Module) -> float:
        """The adapted share of `model`'s linear and convolution weights, without the head."""
        return weight_coverage(self, model)

    def notice(self, model: nn.Module) -> str:
        return coverage_notice(self, model)

    def is_whole(self, site: Site) -> bool:
        """Whether the layer at `site` is one linear, not parts with separate scales."""
        if site.role != "qkv" or site.num_parts == 1 or self.fused_qkv == "whole":
            return True
        has_all = len(parts_of(site, self.roles)) == site.num_parts
        return self.fused_qkv is None and site.windowed and has_all

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        if site.role in (*NORM_ROLES, "patch_embed"):
            return scale_shift_class(site, module, self.title)
        if site.role == "qkv" and site.num_parts == 1:
            require_all_parts(site, self.roles, self.title)
        if isinstance(module, nn.Linear):
            require_plain_linear(site, module, self.title)
            return RescaledLinear
        if isinstance(module, nn.Conv2d):
            return RescaledConv2d
        raise BackboneError(
            f"{self.title} at {site.name!r} ({site.role}): got {type(module).__name__!r}, expected "
            "a Linear or Conv2d. Leave the role out with roles=..."
        )

    def prepare(self, model: nn.Module, adapter: str, sites: Sequence[Site]) -> None:
        for site in sites:
            if self.shift and site.separate_bias:
                for layer in stand_in_for_biases(model, site, parts_of(site, self.roles)):
                    layer.add_adapter(adapter, self, None)

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        return sum(self._count(site, model.get_submodule(site.name)) for site in sites)

    def _count(self, site: Site, module: nn.Module) -> int:
        module = linear_view(module)
        if isinstance(module, nn.LayerNorm):
            return 2 * int(module.normalized_shape[-1])
        weight = module.weight
        assert isinstance(weight, Tensor)
        if site.role == "patch_embed":
            return 2 * len(weight)
        num_out, num_in, takes_shift = len(weight), weight.shape[1], self.shift
        if isinstance(module, nn.Conv2d):
            num_out, num_in = num_out * weight.shape[2], num_in * weight.shape[3]
            takes_shift = self.shift and module.bias is not None
        is_fused = site.role == "qkv"
        num_parts, parts = (site.num_parts, parts_of(site, self.roles)) if is_fused else (1, (0,))
        shifted = shifted_parts(parts) if site.separate_bias else parts
        num_inputs = 1 if self.is_whole(site) else len(parts)
        count = self.rank * num_inputs * num_in if self.sides != "out" else 0
        count += self.rank * num_out * len(parts) // num_parts if self.sides != "in" else 0
        return count + (len(weight) * len(shifted) // num_parts if takes_shift else 0)

    def decayed_by_authors(self, place: str, name: str, parameter: Tensor) -> bool:
        """By name there: all but "bias" and "norm", so the patch embedding's γ and β too."""
        if place in NORM_ROLES or name == "bias":
            return False
        return name != "shift" or place == "patch_embed"

    def combined(
        self, states: Sequence[AdapterState], weights: Sequence[float], how: str, head: str
    ) -> AdapterState:
        return combine_states(states, weights, how, head)
