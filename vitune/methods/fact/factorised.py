"""FacT: one tensor of all weight changes, factorised; both factors of every width are shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from vitune.methods.authoring import (
    BLOCK_LINEARS,
    Counts,
    MethodConfig,
    MethodLayer,
    Roles,
    Site,
    check_choice,
    check_rank,
    check_rate,
    linear_shape,
    require_linear,
)
from vitune.methods.fact.fact_layers import FactorisedLinear, Factors, slices_by_width


@dataclass
class FacTTTConfig(MethodConfig):
    """ΔW = s · V M U in blocks of d × d, with a separate core M per block, U and V shared by all.

    A linear of c·d outputs and c'·d inputs (d the width) has c·c' cores.

    Shapes: U (r, d); V (d, r); cores (c, c', r, r).
    Args:
        rank: r.
        scale: s; the paper's grid is .01, .1, 1, 10, 100 per task.
        dropout: rate on the cores' output while training.

    Raises:
        VituneError: a value out of range, or roles that name a part of a fused qkv.
        BackboneError: at injection, where a linear is no multiple of the width.
    Source: FacT (AAAI 2023), TT form, and its code: V = 0, the rest like `nn.Linear`.
    """

    rank: int = field(default=8)
    scale: float = field(default=1.0)
    dropout: float = field(default=0.1)

    method = "fact_tt"
    title = "FacT-TT"
    source = "Factor-Tuning, AAAI 2023"
    formula = "2·d·r + 12·L·r²"
    counts_on_vit_b16: ClassVar[Counts] = (
        ({"rank": 4}, 8_448),
        ({}, 21_504),
        ({"rank": 16}, 61_440),
    )
    default_roles: ClassVar[Roles] = BLOCK_LINEARS
    needs_all_roles = False
    shares_parameters = True
    tucker: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank)
        check_rate("dropout", self.dropout)

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        require_linear(site, module, self.title, roles=self.roles, changes_bias=False)
        return FactorisedLinear

    def new_shared(self, model: nn.Module, sites: Sequence[Site]) -> nn.Module:
        return Factors(self, slices_by_width([linear_shape(model, site) for site in sites]))

    def decayed_by_authors(self, place: str, name: str, parameter: Tensor) -> bool:
        """Everything: the authors' code has one group of all trained parameters."""
        return True

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        slices = slices_by_width([linear_shape(model, site) for site in sites])
        return sum(self._count(width, number) for width, number in slices.items())

    def _count(self, width: int, num_slices: int) -> int:
        return 2 * width * self.rank + num_slices * self.rank**2


@dataclass
class FacTTKConfig(FacTTTConfig):
    """FacT-TT with the cores composed of a core C that all layers share.

    "blocks", as in the paper: M_m = Σ_c C[c, :, :] P[c, m] for the m-th d × d block.
    "official", as in its code: T = Σ_c C[:, :, c] P[c, :], and M_m = T[:, :, m]ᵀ in attention; of
    fc1 and fc2 T is read as one r × 4r matrix F, whose columns run through m first: block m of fc1
    is (F[:, mr:(m+1)r])ᵀ, of fc2 F[:, mr:(m+1)r]. C is shared and not symmetric, so the two are
    different sets of functions; they have equally many parameters and start alike.

    Shapes: U (r, d); V (d, r); C (r, r, r); P (r, c·c') per linear.
    Args:
        rank: r; the paper uses up to 32.
        layout: "blocks" or "official"; checkpoints of the authors' code need "official"
            (`load_official`).

    Source: FacT (AAAI 2023), Tucker form, and its code; C, P xavier_uniform over all blocks.
    """

    rank: int = field(default=32)
    layout: str = field(default="blocks")

    method = "fact_tk"
    title = "FacT-TK"
    formula = "2·d·r + 12·L·r + r³"
    counts_on_vit_b16 = (({"rank": 16}, 30_976), ({}, 86_528))
    tucker = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("layout", self.layout, ("blocks", "official"))

    def _count(self, width: int, num_slices: int) -> int:
        return 2 * width * self.rank + num_slices * self.rank + self.rank**3
