"""BitFit: every bias of the backbone is trained, nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from vitune.methods.authoring import InPlaceConfig, own_parameters


@dataclass
class BitFitConfig(InPlaceConfig):
    """b' = b + Δb for the bias of every layer (patch embedding, linears, norms).

    A bias is a parameter named exactly `bias`: Swin's relative position tables do not count.

    Source: BitFit (ACL 2022); counts as in the RLRR paper's tables.
    """

    method = "bitfit"
    title = "BitFit"
    source = "BitFit, ACL 2022"
    formula = "Σ out over every layer with a bias"
    counts_on_vit_b16 = (({}, 102_912),)

    def trained(self, model: nn.Module) -> Iterable[tuple[str, str]]:
        return [pair for pair in own_parameters(model) if pair[1] == "bias"]
