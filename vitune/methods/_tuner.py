"""The only glue between vitune's methods and PEFT: injection by site, merge, named adapters.

PEFT's life cycle (get_peft_model, save_pretrained, set_adapter, disable_adapter, merge_and_unload)
drives everything here. A method adds a `MethodConfig` and one or more `MethodLayer`s; `SiteTuner`
finds where they belong and puts them there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn

from vitune.backbones.sites import Site, find_sites, head_name
from vitune.errors import AdapterError, BackboneError
from vitune.methods._combination import AdapterState, add_weighted
from vitune.methods._in_projection import linear_view, place

Tensors = dict[str, Tensor | None]
DeltaNoise = Callable[[int | None, Tensor], Tensor]
"""(block index, change of the output) -> the change with noise on it."""


@dataclass
class MethodConfig(PeftConfig):
    """What every vitune method can be told; the method's own fields follow in its file.

    Args:
        roles: roles to adapt; None means the method's own choice.
        blocks: indices over depth to adapt, negative ones count from the end; None means all.
            Sites outside blocks (patch embedding, final norm) are not affected by it.
        target_modules: the exact module names; filled in at injection and stored with the adapter.
        modules_to_save: modules trained whole beside the method; None means the classifier head
            that is found in the model, [] means none.

    Raises:
        BackboneError: at injection, where the backbone has no site the method needs.
    """

    roles: tuple[str, ...] | None = field(default=None)
    blocks: tuple[int, ...] | None = field(default=None)
    target_modules: tuple[str, ...] | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    method: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    formula: ClassVar[str] = ""
    mergeable: ClassVar[bool] = True
    exposes_delta: ClassVar[bool] = True
    default_lr: ClassVar[float] = 1e-3
    default_weight_decay: ClassVar[float] = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = self.method.upper()
        for name in ("roles", "blocks", "target_modules"):
            value = getattr(self, name)
            if isinstance(value, str | int):
                value = (value,)
            setattr(self, name, None if value is None else tuple(value))

    @property
    def identity_at_init(self) -> bool:
        """Whether the model is exactly the pre-trained one before the first step."""
        raise NotImplementedError

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        """Trainable parameters without the head, by `formula`, from the shapes at `sites` alone."""
        raise NotImplementedError

    def choose(self, sites: Sequence[Site]) -> Sequence[Site]:
        """The sites among `sites` that the method adapts under this configuration."""
        raise NotImplementedError

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        """The layer that adapts `module` at `site`; BackboneError where there is none."""
        raise NotImplementedError

    def new_shared(self, model: nn.Module, sites: Sequence[Site]) -> nn.Module | None:
        """State that all layers of one adapter share, or None; stored once in the checkpoint.

        Its parameters lie on the module itself, not on children: PEFT finds them by that.
        """
        return None

    def combined(
        self, states: Sequence[AdapterState], weights: Sequence[float], how: str, head: str
    ) -> AdapterState:
        """One adapter for Σ w_i · adapter_i, where the method has such arithmetic.

        Raises:
            AdapterError: it has none, or the adapters do not fit together.
        """
        raise AdapterError(
            f"combine: got method {self.method!r}, expected one whose adapters can be added: rlrr."
        )

    def prepare(self, model: nn.Module, adapter: str) -> None:
        """Change parameters in place before injection, for methods without layers of their own."""


class MethodLayer(nn.Module, BaseTunerLayer):
    """A module of the backbone with the adapters that act on it, PEFT's `BaseTunerLayer`.

    A subclass names its parameters in `adapter_layer_names`, creates them in `new_parameters`, and
    says in `adapt` what they make of the base layer's weight and bias; that alone gives it a
    forward pass, merging and un-merging. `adapted_forward` is overridden where there is a faster
    way, which must agree with `adapt`.
    """

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ()
    no_decay: ClassVar[frozenset[str]] = frozenset()
    mergeable: ClassVar[bool] = True
    merge_tolerance: ClassVar[float] = 1e-5
    exposes_delta: ClassVar[bool] = True
    patches_only: ClassVar[bool] = False
    inner_sites: tuple[Site, ...] = ()
    delta_noise: DeltaNoise | None = None

    def __init__(self, base_layer: nn.Module, site: Site) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.site = site
        self.configs: dict[str, Any] = {}
        self.shared: dict[str, nn.Module | None] = {}
        self.merged_adapters: list[str] = []
        self._originals: Tensors | None = None
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        for name in self.other_param_names:
            setattr(self, name, BufferDict(persistent=True))

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        """Initial values by parameter name; a name left out is absent from this adapter."""
        return {}

    def new_buffers(self, config: Any) -> Mapping[str, Tensor]:
        """What the adapter must remember without training it, by name in `other_param_names`."""
        return {}

    def penalty(self, adapter: str, progress: float) -> Tensor | None:
        """A term that the method adds to the training loss, None for most.

        Args:
            progress: share of training that is done, in [0, 1].
        """
        return None

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        """The base layer's {'weight', 'bias'} after `adapter`, differentiable."""
        raise NotImplementedError

    def functional(self, x: Tensor, tensors: Tensors) -> Tensor:
        """The base layer's map with `tensors` in place of its own."""
        raise NotImplementedError

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        """The output with exactly one adapter active."""
        return self.functional(x, self.adapt(self.base_tensors(), adapter))

    def add_adapter(self, adapter: str, config: Any, shared: nn.Module | None) -> None:
        """Create the parameters of `adapter`, in at least float32, on the base layer's device."""
        self.configs[adapter] = config
        self.shared[adapter] = shared
        base = self.get_base_layer()
        own = getattr(base, "weight", None)
        reference = own if isinstance(own, Tensor) else next(base.parameters())
        dtype = torch.promote_types(reference.dtype, torch.float32)
        for name, value in self.new_buffers(config).items():
            getattr(self, name)[adapter] = value.to(reference.device)
        for name, value in self.new_parameters(config, shared).items():
            value = value.to(device=reference.device, dtype=dtype)
            getattr(self, name)[adapter] = nn.Parameter(value)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget `adapter_name` on this layer; PEFT chooses the next active one."""
        self.configs.pop(adapter_name, None)
        self.shared.pop(adapter_name, None)
        super().delete_adapter(adapter_name)

    def parameter(self, name: str, adapter: str) -> Tensor | None:
        """The parameter `name` of `adapter`, None where the adapter has none of that name."""
        values = getattr(self, name)
        return values[adapter] if adapter in values else None

    def base_tensors(self) -> Tensors:
        """The base layer's own weight and bias."""
        base = self.get_base_layer()
        return {"weight": base.weight, "bias": getattr(base, "bias", None)}

    def effective_tensors(self) -> Tensors:
        """Weight and bias that the layer acts with now, differentiable in the adapters."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        tensors = self.base_tensors()
        if not self.disable_adapters and not self.merged:
            for adapter in self.adapters_here():
                tensors = self.adapt(tensors, adapter)
        return tensors

    def adapters_here(self) -> list[str]:
        """Active adapters that this layer has, in the order in which they apply."""
        return [adapter for adapter in self.active_adapters if adapter in self.configs]

    def _get_available_adapters(self) -> set[str]:
        """PEFT asks; a layer may belong to an adapter without parameters of its own."""
        return set(self.configs)

    def _all_available_adapter_names(self) -> list[str]:
        return sorted(self.configs)

    @property
    def weight(self) -> Tensor:
        """The effective weight: modules that read `.weight` themselves get the adapted one."""
        weight = self._as_read("weight")
        assert weight is not None
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The effective bias, None where there is none."""
        return self._as_read("bias")

    def _as_read(self, name: str) -> Tensor | None:
        """An effective tensor in the dtype that the base layer's owner expects."""
        tensor, weight = self.effective_tensors()[name], self.base_tensors().get("weight")
        return tensor if tensor is None or weight is None else tensor.to(weight.dtype)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.disable_adapters and self.merged:
            self.unmerge()
        adapters = [] if self.disable_adapters or self.merged else self.adapters_here()
        if not adapters:
            return self.base_layer(x, *args, **kwargs)
        if len(adapters) == 1:
            output = self.adapted_forward(x, adapters[0])
        else:
            output = self.functional(x, self.effective_tensors())
        if self.delta_noise is None:
            return output
        base = self.base_layer(x)
        return self.joined(base, output - base)

    def joined(self, base: Tensor, delta: Tensor) -> Tensor:
        """base + delta, the delta with noise where a training objective asks for it."""
        if self.delta_noise is not None:
            delta = self.delta_noise(self.site.block, delta)
        return base + delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the effective weight and bias into the base layer, keeping the originals.

        Raises:
            AdapterError: the method cannot be merged, or `safe_merge` found a non-finite value.
        """
        names = check_adapters_to_merge(self, adapter_names)
        names = [name for name in names if name in self.configs]
        if not names:
            return
        if not self.mergeable:
            raise _unmergeable(self.configs[names[0]])
        originals = self.base_tensors()
        tensors = self.merged_tensors(names)
        if safe_merge:
            self.check_finite(tensors)
        self._originals = self._originals or originals
        self._install(tensors)
        self.merged_adapters.extend(names)

    def merged_tensors(self, names: Sequence[str]) -> Tensors:
        """What merging `names` would put into the base layer, frozen and in its dtype."""
        originals = tensors = self.base_tensors()
        with torch.no_grad():
            for name in names:
                tensors = self.adapt(tensors, name)
        return {key: _frozen_like(value, originals) for key, value in tensors.items()}

    def check_finite(self, tensors: Tensors) -> None:
        """Refuse what a merge would write where it holds NaN or infinity.

        Raises:
            AdapterError: it does.
        """
        for part, tensor in tensors.items():
            if tensor is not None and not torch.isfinite(tensor).all():
                raise AdapterError(
                    f"safe merge: got a non-finite {part} at {self.site.name!r}, expected finite "
                    "values. Nothing was merged; train again with a lower learning rate."
                )

    def unmerge(self) -> None:
        """Put the very tensors back that `merge` replaced: the base is restored bit for bit."""
        if self._originals is not None:
            self._install(self._originals)
        self._originals = None
        self.merged_adapters.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MethodLayer:
        """`to`, `half` and the like also reach the originals that a merge has put aside."""
        super()._apply(fn, recurse)
        if self._originals is not None:
            self._originals = {
                name: None if tensor is None else nn.Parameter(fn(tensor.detach()), False)
                for name, tensor in self._originals.items()
            }
        return self

    def _install(self, tensors: Tensors) -> None:
        base = self.get_base_layer()
        for name, tensor in tensors.items():
            if tensor is not None or hasattr(base, name):
                base.register_parameter(name, tensor)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the base layer (in_features, stride, eps, ...) are readable through it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or name.startswith("_"):
                raise
            return getattr(super().__getattr__("base_layer"), name)


class InPlaceLayer(MethodLayer):
    """A layer that replaces no module but stands in for a parameter inside one."""

    def detach_from_owner(self) -> None:
        """Leave the owner as a plain module again, with the value it has now."""
        raise NotImplementedError


class SiteTuner(BaseTuner):
    """PEFT's tuner for all vitune methods: adapts exactly the sites that the config chooses."""

    tuner_layer_cls = MethodLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if not hasattr(self, "shared_state"):
            self.shared_state = nn.ModuleDict()

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **options: Any) -> None:
        """PEFT's, except that a new adapter leaves the trainability of older shared state alone."""
        trained = {
            parameter: parameter.requires_grad
            for parameter in getattr(self, "shared_state", nn.ModuleDict()).parameters()
        }
        super().inject_adapter(model, adapter_name, *args, **options)
        for parameter, requires_grad in trained.items():
            parameter.requires_grad_(requires_grad)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        """Fill in what is left open: the sites' module names and the classifier head."""
        if peft_config.modules_to_save is None:
            head = head_name(self.model)
            peft_config.modules_to_save = [head] if head else []
        known = find_sites(self.model)
        sites = peft_config.choose(known)
        if peft_config.target_modules is not None:
            sites = _restrict(sites, peft_config.target_modules)
        for site in sites:
            module = linear_view(self.model.get_submodule(site.name))
            if not isinstance(module, MethodLayer):
                _check_direct(site, peft_config.layer_class(site, module))
        self._sites = {site.name: site for site in sites}
        self._known_sites = known
        peft_config.target_modules = tuple(self._sites) or DUMMY_TARGET_MODULES
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        adapter = next(name for name, known in self.peft_config.items() if known is peft_config)
        shared = peft_config.new_shared(model, tuple(self._sites.values()))
        if shared is not None:
            reference = next(model.parameters())
            dtype = torch.promote_types(reference.dtype, torch.float32)
            self.shared_state[adapter] = shared.to(device=reference.device, dtype=dtype)
        if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            model.requires_grad_(False)
        peft_config.prepare(model, adapter)

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> bool:
        return key in peft_config.target_modules

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        shared = self.shared_state[adapter_name] if adapter_name in self.shared_state else None
        module = linear_view(target)
        if isinstance(module, MethodLayer):
            module.add_adapter(adapter_name, peft_config, shared)
            return
        site = self._sites[current_key]
        layer = peft_config.layer_class(site, module)(module, site)
        layer.inner_sites = tuple(
            replace(inner, name=inner.name.removeprefix(f"{site.name}."))
            for inner in self._known_sites
            if site.role == "block" and inner.name.startswith(f"{site.name}.")
        )
        layer.add_adapter(adapter_name, peft_config, shared)
        layer.train(target.training)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        place(layer, target, target_name, parent)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        setattr(parent, child_name, new_module)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make `adapter_name` active and, unless for inference, the only one that trains."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        active = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        for name, shared in self.shared_state.items():
            shared.requires_grad_(name in active and not inference_mode)

    def _check_merge_allowed(self) -> None:
        """Refuse before the first layer is merged where any layer could not be."""
        for module in self.model.modules():
            if isinstance(module, MethodLayer) and module.configs and not module.mergeable:
                raise _unmergeable(next(iter(module.configs.values())))
        super()._check_merge_allowed()

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Merge into the base layers; a safe merge looks at all of them before it writes to any.

        Raises:
            AdapterError: the method cannot be merged, or `safe_merge` found a non-finite value.
        """
        if safe_merge:
            self._check_finite(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def _check_finite(self, adapter_names: list[str] | None) -> None:
        for module in self.model.modules():
            if isinstance(module, MethodLayer) and module.mergeable:
                names = module.active_adapters if adapter_names is None else adapter_names
                new = set(names) & set(module.configs) - set(module.merged_adapters)
                if new:
                    module.check_finite(module.merged_tensors(sorted(new)))

    def _unload_and_optionally_merge(self, merge: bool = True, **options: Any) -> nn.Module:
        if merge:
            self._check_merge_allowed()
            if options.get("safe_merge", False):
                self._check_finite(options.get("adapter_names"))
            for module in self.model.modules():
                if isinstance(module, InPlaceLayer):
                    module.merge(options.get("safe_merge", False), options.get("adapter_names"))
        for module in list(self.model.modules()):
            if isinstance(module, InPlaceLayer):
                module.detach_from_owner()
        return super()._unload_and_optionally_merge(merge=merge, **options)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        how: str = "compose",
        head: str = "auto",
    ) -> None:
        """Add Σ w_i · adapter_i as `adapter_name`, for methods that say what that means.

        It is not made active. `how` and `head` are those of `vitune.methods.combine_states`.

        Raises:
            AdapterError: unknown or taken names, adapters that differ, or no such arithmetic.
        """
        add_weighted(self, adapters, weights, adapter_name, how, head)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget `adapter_name` with its shared state; another stays, or becomes, active."""
        active = [name for name in self.active_adapters if name != adapter_name]
        super().delete_adapter(adapter_name)
        if not self.active_adapters and self.peft_config:
            # PEFT asks the layers which adapter is next, and a linear probe has none.
            self.set_adapter(active or sorted(self.peft_config)[:1])
        if adapter_name in self.shared_state:
            del self.shared_state[adapter_name]


def register(config_class: type[MethodConfig]) -> None:
    """Make a method known to PEFT under its upper-case name.

    PEFT's own `register_peft_method` insists on a closed enum; its three mapping tables take plain
    strings. `tests/methods/test_registration.py` fails when a PEFT release changes that.
    """
    peft_type = config_class.method.upper()
    prefix = f"vitune_{config_class.method}_"  # PEFT passes over modules with this in their name
    tuner = type(
        f"{config_class.__name__.removesuffix('Config')}Model",
        (SiteTuner,),
        {"prefix": prefix, "__doc__": f"{config_class.title} in PEFT."},
    )
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_class
    PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = tuner
    PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = prefix


def _restrict(sites: Sequence[Site], names: Sequence[str]) -> list[Site]:
    """The sites among `sites` that `names` lists, all of which must be there."""
    if names == DUMMY_TARGET_MODULES or list(names) == [DUMMY_TARGET_MODULES]:
        return list(sites)
    missing = sorted(set(names) - {site.name for site in sites})
    if missing:
        raise BackboneError(
            f"target_modules: got {missing!r} without a site, expected names among "
            f"{[site.name for site in sites][:8]} ... "
            "Is this the backbone that the adapter was made for?"
        )
    return [site for site in sites if site.name in names]


def _check_direct(site: Site, layer_class: type[MethodLayer]) -> None:
    """Refuse a layer that acts by its forward pass where the backbone would pass it over."""
    if site.direct_weight and not layer_class.mergeable:
        raise BackboneError(
            f"{layer_class.__name__} at {site.name!r} ({site.role}): got an attention that reads "
            "weights itself, expected a method that merges into weights. Choose another method, "
            "or leave the role out with roles=..."
        )


def _unmergeable(config: MethodConfig) -> AdapterError:
    return AdapterError(
        f"merge: got method {config.method!r}, expected one that merges. "
        "It changes more than weights; keep it un-merged ('vitune methods' lists which do)."
    )


def _frozen_like(tensor: Tensor | None, originals: Tensors) -> nn.Parameter | None:
    """`tensor` as a frozen parameter in the base weight's dtype."""
    if tensor is None or any(tensor is original for original in originals.values()):
        return tensor  # type: ignore[return-value]
    reference = originals["weight"]
    dtype = tensor.dtype if reference is None else reference.dtype
    return nn.Parameter(tensor.detach().to(dtype), requires_grad=False)
