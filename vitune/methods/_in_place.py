"""Methods that train parameters the backbone already has: a copy of each stands in for its own.

The copy is put in place with `torch.nn.utils.parametrize`, so it works on any module, the root
included (class token, position embedding); the frozen original stays underneath for
`disable_adapter`, several adapters and un-merging.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitune.backbones.sites import Site, head_name
from vitune.methods._base_layers import require_own_parameter
from vitune.methods._tuner import InPlaceLayer, MethodConfig, MethodLayer, Tensors


class TrainedParameter(InPlaceLayer):
    """p ← p̂: the adapter's copy of one parameter in place of the frozen original.

    Shapes: value, that of the original.
    """

    adapter_layer_names = ("value",)

    def __init__(self, base_layer: nn.Module, site: Site, parameter_name: str) -> None:
        nn.Module.__init__(self)
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.site, self.parameter_name = site, parameter_name
        self.configs, self.shared, self.merged_adapters = {}, {}, []
        self._owner = (base_layer,)
        self._originals: Tensors | None = None

    def get_base_layer(self) -> nn.Module:
        """The module that owns the parameter."""
        return self._owner[0]

    @property
    def no_decay(self) -> frozenset[str]:  # type: ignore[override]
        """Vectors (biases, norm weights) and embeddings are not decayed."""
        is_matrix = self._slot().dim() > 1 and self.parameter_name == "weight"
        return frozenset() if is_matrix else frozenset({"value"})

    def add_adapter(self, adapter: str, config: Any, shared: nn.Module | None) -> None:
        self.configs[adapter], self.shared[adapter] = config, shared
        original = self._slot()
        dtype = torch.promote_types(original.dtype, torch.float32)
        self.value[adapter] = nn.Parameter(original.detach().to(dtype, copy=True))

    def forward(self, original: Tensor) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
            original = self._slot()
        adapters = [] if self.disable_adapters or self.merged else self.adapters_here()
        return self.value[adapters[-1]].to(original.dtype) if adapters else original

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        return {self.parameter_name: self.value[adapter]}

    def base_tensors(self) -> Tensors:
        return {self.parameter_name: self._slot(), "weight": self._slot()}

    def _install(self, tensors: Tensors) -> None:
        value = tensors[self.parameter_name]
        assert value is not None
        slots: Any = self.get_base_layer().parametrizations
        slots[self.parameter_name].original = value

    def detach_from_owner(self) -> None:
        """Undo the parametrization on this very module.

        `remove_parametrizations` would take the property off the class, which a deepcopy of the
        module shares; here the module leaves that class instead.
        """
        owner: Any = self.get_base_layer()
        original = owner.parametrizations[self.parameter_name].original
        del owner.parametrizations[self.parameter_name]
        if not len(owner.parametrizations):
            del owner.parametrizations
            owner.__class__ = type(owner).__bases__[0]
            earlier = owner.__dict__.pop("_detached", ())
            for name, tensor in (*earlier, (self.parameter_name, original)):
                owner.register_parameter(name, tensor)
        else:
            owner.__dict__.setdefault("_detached", []).append((self.parameter_name, original))

    def _slot(self) -> Tensor:
        """The frozen original under the parametrization."""
        slots: Any = self.get_base_layer().parametrizations
        original: Tensor = slots[self.parameter_name].original
        return original


class InPlaceConfig(MethodConfig):
    """Base of the methods that train existing parameters; a subclass says which."""

    mergeable: ClassVar[bool] = True
    exposes_delta: ClassVar[bool] = False

    @property
    def identity_at_init(self) -> bool:
        return True

    def choose(self, sites: Sequence[Site]) -> Sequence[Site]:
        return ()

    def trained(self, model: nn.Module) -> Iterable[tuple[str, str]]:
        """(module name, parameter name) pairs to train, '' being the root module."""
        raise NotImplementedError

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        head = head_name(model)
        heads = () if head is None else (head,)
        return sum(
            getattr(model.get_submodule(module_name), parameter_name).numel()
            for module_name, parameter_name in _outside(self.trained(model), heads)
        )

    def check(self, model: nn.Module, sites: Sequence[Site]) -> None:
        for module_name, name in _outside(self.trained(model), self.modules_to_save or ()):
            owner = model.get_submodule(module_name)
            slots: Any = getattr(owner, "parametrizations", {})
            if name not in slots or not isinstance(slots[name][0], TrainedParameter):
                require_own_parameter(owner, name, f"{self.title} at {module_name!r}")

    def prepare(self, model: nn.Module, adapter: str) -> None:
        heads = self.modules_to_save or ()
        for module_name, parameter_name in _outside(self.trained(model), heads):
            stand_in(model, module_name, parameter_name).add_adapter(adapter, self, None)


def _outside(pairs: Iterable[tuple[str, str]], heads: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs whose module is not in one of `heads`, which are trained as wholes."""
    kept = tuple(f"{head}." for head in heads)
    return [pair for pair in pairs if not f"{pair[0]}.".startswith(kept)]


def own_parameters(model: nn.Module) -> list[tuple[str, str]]:
    """(module name, parameter name) of every parameter, through parametrizations and wrappers."""
    found = []
    for module_name, module in model.named_modules():
        if isinstance(module, MethodLayer | parametrize.ParametrizationList | nn.ParameterDict):
            continue
        names = [name for name, _ in module.named_parameters(recurse=False)]
        slots = getattr(module, "parametrizations", None)
        names += [] if slots is None else list(slots)
        found += [(module_name, name) for name in names]
    return found


def stand_in(
    model: nn.Module,
    module_name: str,
    parameter_name: str,
    kind: type[Any] = TrainedParameter,
) -> Any:
    """The layer that stands in for a parameter, put in place where there is none yet."""
    owner = model.get_submodule(module_name)
    slots: Any = getattr(owner, "parametrizations", None)
    if slots is not None and parameter_name in slots:
        layer: TrainedParameter = slots[parameter_name][0]
        return layer
    site = Site(module_name, "head" if not module_name else "block", None)
    layer = kind(owner, site, parameter_name)
    parametrize.register_parametrization(owner, parameter_name, layer, unsafe=True)
    _copy_like_any_module(type(owner))
    return layer


def _copy_like_any_module(parametrized: type) -> None:
    """Drop the `__deepcopy__` that parametrize adds.

    A PeftModel forwards unknown attributes to the network inside, so `copy.deepcopy(peft_model)`
    would find this one and copy the network alone.
    """
    for name in ("__deepcopy__", "__getstate__"):
        if name in vars(parametrized):
            delattr(parametrized, name)
