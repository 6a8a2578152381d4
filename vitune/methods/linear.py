"""Linear probe: only the classifier head is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from vitune.methods.authoring import BackboneError, InPlaceConfig, Site


@dataclass
class LinearProbeConfig(InPlaceConfig):
    """y = W_head f(x) + b_head with f frozen: the baseline every method has to beat.

    A probe has no layers, and transformers' `enable_adapters` switches on nothing else: behind its
    `disable_adapters` call `enable_adapters(True)` on the classifier itself.

    Source: common practice; the "Linear" rows of VTAB-1k and FGVC tables.
    """

    method = "linear"
    title = "Linear probe"
    source = "common practice"
    formula = "0"
    counts_on_vit_b16 = (({}, 0),)
    exposes_delta = True
    narrowed_by = frozenset()

    @classmethod
    def reason_against(cls, option: str) -> str:
        """Why the method does not take an option."""
        return "only the head trains"

    def prepare(self, model: nn.Module, adapter: str, sites: Sequence[Site]) -> None:
        if not self.modules_to_save:
            raise BackboneError(
                f"{self.title}: got modules_to_save={self.modules_to_save!r} for "
                f"{type(model).__name__}, expected a classifier to train. Name it there."
            )

    def trained(self, model: nn.Module) -> Iterable[tuple[str, str]]:
        return ()
