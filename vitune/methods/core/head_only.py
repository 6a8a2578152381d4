"""Methods that train only the classifier: no layers, nothing to narrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from torch import nn

from vitune.backbones.sites import Site
from vitune.errors import BackboneError
from vitune.methods.core.in_place import InPlaceConfig


class HeadOnlyConfig(InPlaceConfig):
    """Base of the probes.

    A probe has no layers, and transformers' `enable_adapters` switches on nothing else: after its
    `disable_adapters`, call `enable_adapters(True)` on the classifier itself.
    """

    formula = "0"
    exposes_delta: ClassVar[bool] = True
    narrowed_by: ClassVar[frozenset[str]] = frozenset()
    starts_at_probe: ClassVar[bool] = False

    @classmethod
    def reason_against(cls, option: str) -> str:
        """Why the method does not support an option."""
        return "only the head trains"

    def prepare(self, model: nn.Module, adapter: str, sites: Sequence[Site]) -> None:
        if not self.modules_to_save:
            raise BackboneError(
                f"{self.title}: got modules_to_save={self.modules_to_save!r} for "
                f"{type(model).__name__}, expected a classifier to train. Name it there."
            )

    def trained(self, model: nn.Module) -> Iterable[tuple[str, str]]:
        return ()
