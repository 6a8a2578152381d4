"""Partial fine-tuning: the last k blocks and the final norm are trained whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from vitune.methods.authoring import (
    BackboneError,
    InPlaceConfig,
    VituneError,
    check_rank,
    find_sites,
    own_parameters,
)


@dataclass
class PartialConfig(InPlaceConfig):
    """All parameters of the last k blocks and of the final norm train.

    Args:
        num_blocks: k.

    Raises:
        VituneError: k is below 1 or above the number of blocks.
        BackboneError: at injection, where the backbone has no transformer blocks.
    Source: "Partial-k" of the VPT paper (ECCV 2022), whose code trains the final norm too.
    """

    num_blocks: int = field(default=1)

    method = "partial"
    title = "Partial-k"
    source = "common practice"
    formula = "k·(12·d² + 13·d) + 2·d"
    counts_on_vit_b16 = (({"num_blocks": 2}, 14_177_280),)
    narrowed_by = InPlaceConfig.narrowed_by - {"blocks"}

    @classmethod
    def reason_against(cls, option: str) -> str:
        """Why the method does not support an option."""
        if option == "blocks":
            return "num_blocks sets how many of the last blocks train"
        return super().reason_against(option)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.num_blocks, "num_blocks")

    def trained(self, model: nn.Module) -> Iterable[tuple[str, str]]:
        sites = find_sites(model)
        blocks = [site.name for site in sites if site.role == "block"]
        if not blocks:
            raise BackboneError(
                f"{self.title}: got {type(model).__name__} without transformer blocks, expected "
                "some. Choose another method ('vitune methods')."
            )
        if self.num_blocks > len(blocks):
            raise VituneError(
                f"num_blocks: got {self.num_blocks!r}, expected at most {len(blocks)}, the "
                "number of blocks of this backbone."
            )
        norms = [site.name for site in sites if site.role == "final_norm"]
        kept = tuple(f"{name}." for name in (*blocks[-self.num_blocks :], *norms))
        return [pair for pair in own_parameters(model) if f"{pair[0]}.".startswith(kept)]
