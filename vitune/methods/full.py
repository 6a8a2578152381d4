"""Full fine-tuning: every parameter of the backbone is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from vitune.methods.authoring import InPlaceConfig, own_parameters


@dataclass
class FullConfig(InPlaceConfig):
    """All parameters train, embeddings and norms included; the originals are kept beside them.

    The kept originals cost one copy of the network in memory, and give the same life cycle as
    every other method: disable, several adapters, refusal on the wrong backbone.

    Source: common practice; the "Full" rows of VTAB-1k and FGVC tables.
    """

    method = "full"
    title = "Full fine-tuning"
    source = "common practice"
    formula = "all"
    counts_on_vit_b16 = (({}, 85_798_656),)
    default_lr = 1e-4

    def trained(self, model: nn.Module) -> Iterable[tuple[str, str]]:
        return own_parameters(model)
