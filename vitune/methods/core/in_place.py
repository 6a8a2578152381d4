"""Methods that train parameters the backbone already has: a copy of each replaces the original.

This works on any module, including the root (class token, position embedding); the frozen original
keeps its location and name, for `disable_adapter`, several adapters and un-merging.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from vitune.backbones import bare_name
from vitune.backbones.sites import Site, find_sites, head_names
from vitune.backbones.structure import STAND_INS
from vitune.errors import BackboneError
from vitune.methods.core.base_layers import require_own_parameter
from vitune.methods.core.dressed import Dressed, Keeper, dress, dressed_class, undress
from vitune.methods.core.layer import InPlaceLayer, MethodLayer, Tensors
from vitune.methods.core.method_config import MethodConfig
from vitune.methods.core.peft_options import ALL_LINEAR, is_all_linear, is_saved_whole, matches
from vitune.methods.core.roles import block_indices
from vitune.methods.core.targets import meant, warn_of_idle_exclusion

Pair = tuple[str, str]
"""(module name, parameter name), '' being the root module."""


class TrainedParameter(InPlaceLayer):
    """p ← p̂: the adapter's copy of one parameter in place of the frozen original.

    The changes of several adapters are added: p + Σ (p̂ᵢ − p).

    Shapes: value, that of the original.
    """

    adapter_layer_names = ("value",)

    def __init__(self, base_layer: nn.Module, site: Site, parameter_name: str) -> None:
        nn.Module.__init__(self)
        self.new_containers()
        self.site, self.parameter_name = site, parameter_name
        self.configs, self.shared, self.merged_adapters = {}, {}, []
        self._owner = (base_layer,)  # in a tuple nn.Module does not see it: no circle of modules
        self._originals: Tensors | None = None

    def get_base_layer(self) -> nn.Module:
        """The module that owns the parameter."""
        return self._owner[0]

    @property
    def no_decay(self) -> frozenset[str]:  # type: ignore[override]
        """Vectors (biases, norm weights) and embeddings are not decayed."""
        is_matrix = self._slot().dim() > 1 and self.parameter_name == "weight"
        return frozenset() if is_matrix else frozenset({"value"})

    def new_parameters(self, config: Any, shared: nn.Module | None) -> dict[str, Tensor]:
        return {"value": self._slot().detach().clone()}

    def reference_tensor(self) -> Tensor:
        return self._slot()

    def forward(self, original: Tensor) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
            original = self._slot()
        tensors: Tensors = {self.parameter_name: original}
        for adapter in [] if self.disable_adapters or self.merged else self.adapters_here():
            tensors = self.adapt(tensors, adapter)
        value = tensors[self.parameter_name]
        assert value is not None
        return value.to(original.dtype)

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        current, value = tensors[self.parameter_name], self.value[adapter]
        assert current is not None
        if current is self._slot() and not self.merged:
            return {**tensors, self.parameter_name: value}
        original = self.original_tensors()[self.parameter_name]
        return {**tensors, self.parameter_name: current + (value - original)}

    def base_tensors(self) -> Tensors:
        return {self.parameter_name: self._slot(), "weight": self._slot()}

    def _install(self, tensors: Tensors) -> None:
        self._slots()[self.parameter_name].original = tensors[self.parameter_name]

    def detach_from_owner(self) -> None:
        """Return the parameter to its owner."""
        owner, slots = self.get_base_layer(), self._slots()
        original = self._slot()
        del slots[self.parameter_name]
        undress(owner)
        if own_slots(owner):
            dress(owner, standing_class, own_slots(owner))
        if not len(slots):
            del owner._modules[STAND_INS]
        owner.register_parameter(self.parameter_name, original)

    def _slots(self) -> Any:
        return self.get_base_layer()._modules[STAND_INS]

    def _slot(self) -> nn.Parameter:
        """The frozen original."""
        original: nn.Parameter = self._slots()[self.parameter_name].original
        return original


class Slot(Keeper, nn.ModuleList):
    """The original of a parameter, and the layer that replaces it."""

    def __init__(self, original: nn.Parameter | None) -> None:
        super().__init__()
        self._parameters["original"] = original


def own_slots(owner: nn.Module) -> tuple[str, ...]:
    """The parameters of `owner` in slots; torch keeps the ones that it computes beside them."""
    held = owner._modules[STAND_INS]
    assert held is not None
    return tuple(name for name, kept in held.named_children() if isinstance(kept, Slot))


class Standing(Dressed):
    """A module with parameters in slots."""

    def keepers(self) -> dict[str, str]:
        return {name: f"{STAND_INS}.{name}.original" for name in own_slots(self)}


class InPlaceConfig(MethodConfig):
    """Base of the methods that train existing parameters; a subclass chooses which."""

    trains_in_place: ClassVar[bool] = True
    every_site_has_tensors: ClassVar[bool] = False
    exposes_delta: ClassVar[bool] = False
    narrowed_by: ClassVar[frozenset[str]] = frozenset(
        {"blocks", "target_modules", "exclude_modules", ALL_LINEAR}
    )

    @classmethod
    def reason_against(cls, option: str) -> str:
        """Why the method does not support an option."""
        return f"{cls.title} trains parameters of the backbone, not layers with roles"

    def choose(self, sites: Sequence[Site]) -> Sequence[Site]:
        return ()

    def trained(self, model: nn.Module) -> Iterable[Pair]:
        """(module name, parameter name) pairs to train, '' being the root module."""
        raise NotImplementedError

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        heads = self.modules_to_save if self.modules_to_save is not None else head_names(model)
        return sum(
            getattr(model.get_submodule(module_name), parameter_name).numel()
            for module_name, parameter_name in self._narrowed(model, heads)
        )

    def check(self, model: nn.Module, sites: Sequence[Site]) -> None:
        heads = self.modules_to_save or ()
        warn_of_idle_exclusion(self, [module for module, _ in self._outside(model, heads)])
        for module_name, name in self._narrowed(model, heads):
            owner = model.get_submodule(module_name)
            if not isinstance(owner, Standing) or name not in owner.keepers():
                require_own_parameter(owner, name, f"{self.title} at {module_name!r}")

    def prepare(self, model: nn.Module, adapter: str, sites: Sequence[Site]) -> None:
        for module_name, parameter_name in self._narrowed(model, self.modules_to_save or ()):
            stand_in(model, module_name, parameter_name).add_adapter(adapter, self, None)

    def _outside(self, model: nn.Module, heads: Sequence[str]) -> list[Pair]:
        """The pairs to train outside modules that are saved whole."""
        pairs = self.trained(model)
        return [pair for pair in pairs if not is_saved_whole(heads, bare_name(pair[0]))]

    def _narrowed(self, model: nn.Module, heads: Sequence[str]) -> list[Pair]:
        """The pairs to train, as PEFT's options narrow them."""
        pairs = self._outside(model, heads)
        wanted = {module for module, _ in pairs}
        if is_all_linear(self.target_modules):
            wanted = {name for name in wanted if isinstance(model.get_submodule(name), nn.Linear)}
        elif self.target_modules is not None:
            wanted = meant(self.target_modules, sorted(wanted), self.title)
        if self.blocks is not None:
            wanted -= _in_other_blocks(model, wanted, self.blocks)
        kept = [
            pair
            for pair in pairs
            if pair[0] in wanted and not matches(self.exclude_modules, bare_name(pair[0]))
        ]
        if pairs and not kept:
            raise BackboneError(
                f"{self.title}: got blocks={self.blocks!r}, target_modules="
                f"{self.target_modules!r} and exclude_modules={self.exclude_modules!r}, expected "
                "something left to train. Leave one of them out."
            )
        return kept


def _in_other_blocks(model: nn.Module, names: Iterable[str], blocks: Sequence[int]) -> set[str]:
    """Those of `names` in a block that is not in `blocks`."""
    sites = find_sites(model)
    kept = block_indices(sites, blocks)
    others = tuple(
        f"{site.name}." for site in sites if site.role == "block" and site.block not in kept
    )
    return {name for name in names if f"{name}.".startswith(others)} if others else set()


def own_parameters(model: nn.Module) -> list[Pair]:
    """Every parameter of the network itself, including computed ones, without those of adapters."""
    found: list[Pair] = []
    added: tuple[str, ...] = ()
    for module_name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            added += (f"{module_name}.modules_to_save.",)
        is_added = isinstance(module, MethodLayer | ParametrizationList | nn.ParameterDict | Slot)
        if is_added or f"{module_name}.".startswith(added):
            continue
        names = [name for name, _ in module.named_parameters(recurse=False)]
        names += module.keepers() if isinstance(module, Standing) else []
        names += module.parametrizations if is_parametrized(module) else []
        found += [(module_name, name) for name in dict.fromkeys(names)]  # a slot is in both lists
    return found


def stand_in(
    model: nn.Module,
    module_name: str,
    parameter_name: str,
    kind: type[Any] = TrainedParameter,
) -> Any:
    """The layer that replaces a parameter, created if there is none yet."""
    owner = model.get_submodule(module_name)
    if STAND_INS not in owner._modules:
        owner.add_module(STAND_INS, nn.ModuleDict())
    slots: Any = owner._modules[STAND_INS]
    if parameter_name not in slots:
        slot = slots[parameter_name] = Slot(owner._parameters.pop(parameter_name))
        site = Site(module_name, "head" if not module_name else "block", None)
        slot.append(kind(owner, site, parameter_name))
        dress(owner, standing_class, own_slots(owner))
    return slots[parameter_name][0]


@functools.cache
def standing_class(kind: type, names: tuple[str, ...]) -> type:
    """`kind` with the parameters `names` read through the layers that replace them."""
    return dressed_class(kind, Standing, **{name: _read(name) for name in names})


def _read(name: str) -> property:
    def value(module: Any) -> Tensor:
        slot = module._modules[STAND_INS][name]
        stood_in: Tensor = slot[0](slot.original)
        return stood_in

    return property(value)
