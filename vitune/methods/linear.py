"""Linear probe: only the classifier head is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from vitune.methods._in_place import InPlaceConfig


@dataclass
class LinearProbeConfig(InPlaceConfig):
    """y = W_head f(x) + b_head with f frozen: the baseline every method has to beat.

    Source: common practice; the "Linear" rows of VTAB-1k and FGVC tables.
    """

    method = "linear"
    title = "Linear probe"
    source = "common practice"
    formula = "0"
    exposes_delta = True

    def trained(self, model: nn.Module) -> Iterable[tuple[str, str]]:
        return ()
