"""The settings of a method, and what its class declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

from vitune.backbones.sites import Site
from vitune.methods.core.combination import AdapterState, not_combining
from vitune.methods.core.layer import MethodLayer
from vitune.methods.core.peft_options import PeftOptions
from vitune.methods.core.roles import choose_sites

Roles = tuple[str, ...]
Counts = tuple[tuple[Mapping[str, Any], int], ...]
"""Pairs of a method's arguments and the resulting number of trained parameters."""


@dataclass
class MethodConfig(PeftOptions):
    """The settings of every vitune method; the method's own fields are in its file.

    A model keeps its own copy; the object passed in is never written to. A method's class declares
    what it is: `method` (its name), `title`, `source` and `formula` (of the parameter count);
    `default_roles`, and with `needs_all_roles = False` that some of them may be missing;
    `counts_on_vit_b16`, pairs of arguments and trained parameters without the head, as published
    for ViT-B/16 at 224 x 224, which the tests check; `speed_arguments`, by preset of `--speed` the
    arguments that make it faster and less exact; `needs_every_patch`, if a patch's position in the
    sequence must be its position in the grid; `brings_exits`, if it trains early exits, which read
    every token.

    Raises:
        VituneError: an option that the method does not support.
        BackboneError: at injection, where the backbone has no site the method needs.
    """

    source: ClassVar[str]
    formula: ClassVar[str] = ""
    exposes_delta: ClassVar[bool] = True
    trains_in_place: ClassVar[bool] = False
    every_site_has_tensors: ClassVar[bool] = True
    default_roles: ClassVar[Roles] = ()
    needs_all_roles: ClassVar[bool] = True
    counts_on_vit_b16: ClassVar[Counts] = ()
    speed_arguments: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    needs_every_patch: ClassVar[bool] = False
    brings_exits: ClassVar[bool] = False
    default_lr: ClassVar[float] = 1e-3
    default_weight_decay: ClassVar[float] = 1e-4
    identity_args: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Arguments that make it start at the pre-trained function, for a start at the probe."""

    @property
    def identity_at_init(self) -> bool:
        """Whether the model is exactly the pre-trained one before the first step.

        A class that never starts there sets `identity_at_init = False`.
        """
        return True

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        """Trainable parameters without the head, by `formula`, from the shapes at `sites` alone."""
        raise NotImplementedError

    def choose(self, sites: Sequence[Site]) -> Sequence[Site]:
        """The sites among `sites` that the method adapts: those of `roles` or `default_roles`."""
        roles, is_named = self.roles or self.default_roles, self.roles is not None
        named = is_named or self.needs_all_roles
        return choose_sites(sites, roles, self.blocks, named=named, by=self.title)

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        """The layer that adapts `module` at `site`; BackboneError if there is none."""
        raise NotImplementedError

    def new_shared(self, model: nn.Module, sites: Sequence[Site]) -> nn.Module | None:
        """State that all layers of one adapter share, or None; stored once in the checkpoint.

        Its parameters must be on the module itself, not on children, so that PEFT finds them. A
        class with such parameters sets `shares_parameters`.
        """
        return None

    def decayed_by_authors(self, place: str, name: str, parameter: Tensor) -> bool | None:
        """Whether the authors' own code decays a parameter; None if no code was read.

        Args:
            place: the role of its site; "shared" for state of all layers, "head" for the head.
            name: within the layer, e.g. "scale_out"; for the head "weight" or "bias".
        """
        return None

    def combined(
        self, states: Sequence[AdapterState], weights: Sequence[float], how: str, head: str
    ) -> AdapterState:
        """One adapter for Σ w_i · adapter_i, for methods that set `combines`.

        Raises:
            AdapterError: the method cannot be combined, or the adapters do not fit together.
        """
        raise not_combining(self)

    def check(self, model: nn.Module, sites: Sequence[Site]) -> None:
        """Refuse a network on which the method would fail or mean something else at `sites`.

        Raises:
            BackboneError: it would.
        """

    def notice(self, model: nn.Module) -> str:
        """A notice about the method on `model` before training, or ''."""
        return ""

    def prepare(self, model: nn.Module, adapter: str, sites: Sequence[Site]) -> None:
        """Change parameters in place before injection, for methods without layers of their own."""
