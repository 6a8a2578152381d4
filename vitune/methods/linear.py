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
    narrowed_by = frozenset()

    @classmethod
    def reason_against(cls, option: str) -> str:
        """Why the method does not take an option."""
        return "only the head trains"

    def trained(self, model: nn.Module) -> Iterable[tuple[str, str]]:
        return ()
