"""The only glue between vitune's methods and PEFT: injection by site, merge, named adapters.

PEFT's life cycle (get_peft_model, save_pretrained, set_adapter, disable_adapter, merge_and_unload)
drives everything here. A method adds a `MethodConfig` and one or more `MethodLayer`s; `SiteTuner`
finds where they belong and puts them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from vitune.backbones.sites import Site, find_sites, head_name
from vitune.errors import BackboneError
from vitune.methods._added_biases import kept_on_saving
from vitune.methods._base_layers import require_free_names
from vitune.methods._combination import AdapterState as AdapterState
from vitune.methods._combination import add_weighted
from vitune.methods._in_projection import linear_view, place
from vitune.methods._layer import InPlaceLayer as InPlaceLayer
from vitune.methods._layer import MethodConfig as MethodConfig
from vitune.methods._layer import MethodLayer as MethodLayer
from vitune.methods._layer import Tensors as Tensors
from vitune.methods._layer import unmergeable


class SiteTuner(BaseTuner):
    """PEFT's tuner for all vitune methods: adapts exactly the sites that the config chooses."""

    tuner_layer_cls = MethodLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if not hasattr(self, "shared_state"):
            self.shared_state = nn.ModuleDict()

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **options: Any
    ) -> None:
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
        require_free_names(self.model)
        known = find_sites(self.model)
        sites = peft_config.choose(known)
        if peft_config.target_modules is not None:
            sites = _restrict(sites, peft_config.target_modules)
        for site in sites:
            module = linear_view(self.model.get_submodule(site.name))
            if not isinstance(module, MethodLayer):
                layer_class = peft_config.layer_class(site, module)
                _check_direct(site, layer_class)
                layer_class.require_base(site, module, peft_config.title)
        peft_config.check(self.model, sites)
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
        shared = self._shared_of(adapter_name)
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

    def _shared_of(self, adapter_name: str) -> nn.Module | None:
        # ModuleDict has no `get`.
        has_state = adapter_name in self.shared_state
        return self.shared_state[adapter_name] if has_state else None

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
                raise unmergeable(next(iter(module.configs.values())))
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

    def merge_and_unload(self, *args: Any, **options: Any) -> nn.Module:
        """PEFT's; a transformers model that could not be saved whole afterwards refuses to be."""
        with kept_on_saving(self.model):
            return super().merge_and_unload(*args, **options)

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
