"""The glue between vitune's methods and PEFT: injection by site, merging, named adapters.

PEFT's life cycle (get_peft_model, save_pretrained, set_adapter, disable_adapter, merge_and_unload)
drives everything here. A method brings a `MethodConfig` and one or more `MethodLayer`s; `SiteTuner`
finds their sites and puts the layers there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn

from vitune.backbones.sites import Site, find_sites
from vitune.errors import AdapterError, BackboneError, OutOfMemoryError, says_no_memory
from vitune.methods.core.adapter_tensors import (
    SharedState,
    current_names,
    sites_in,
    tell_missing,
    tensors_of,
)
from vitune.methods.core.added_biases import kept_on_saving
from vitune.methods.core.base_layers import require_free_names
from vitune.methods.core.combination import add_weighted
from vitune.methods.core.in_projection import linear_view, place
from vitune.methods.core.layer import InPlaceLayer, MethodLayer, cast, unmergeable
from vitune.methods.core.saved_modules import require_one_each, save_whole, use_whole
from vitune.methods.core.targets import resolve, warn_of_idle_exclusion
from vitune.methods.core.value_checks import check_choice

COMBINATION_TYPES = {"linear": "compose", "cat": "sum"}
"""PEFT's words for ways of combining adapters, and ours."""


class SiteTuner(BaseTuner):
    """PEFT's tuner for all vitune methods; it adapts exactly the sites that the config chooses."""

    tuner_layer_cls = MethodLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if not hasattr(self, "shared_state"):
            self.shared_state = SharedState()

    @torch.inference_mode(False)  # tensors made in inference mode could never be trained
    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        *args: Any,
        state_dict: dict[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        """PEFT's, on a copy of the config. Shared state of other adapters stays as it was.

        A `state_dict` says which sites to adapt, as it does for PEFT's own methods.
        """
        config = copy.deepcopy(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        if state_dict is not None and config.every_site_has_tensors:
            config.target_modules = sites_in(state_dict, find_sites(model))
        given = config.target_modules, config.exclude_modules
        trained = {
            parameter: parameter.requires_grad
            for parameter in getattr(self, "shared_state", nn.ModuleDict()).parameters()
        }
        try:
            super().inject_adapter(model, adapter_name, *args, **options)
        except Exception as error:  # a half-made adapter leaves nothing shared
            self._forget_shared(adapter_name)
            if isinstance(error, RuntimeError | MemoryError) and says_no_memory(error):
                raise OutOfMemoryError(
                    f"memory: got a {config.title} adapter that does not fit into it, expected a "
                    "smaller one. Lower the argument that makes it so large."
                ) from error
            raise
        config.modules_to_save = self._saved_whole
        save_whole(
            model,
            adapter_name,
            config.modules_to_save,
            active=self.active_adapters,
            is_frozen=config.inference_mode,
        )
        config.exclude_modules = given[1]
        if config.trains_in_place:
            config.target_modules = given[0] or DUMMY_TARGET_MODULES
        for parameter, requires_grad in trained.items():
            parameter.requires_grad_(requires_grad)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        """Fill in what is left open: the classifier head, and the sites to adapt."""
        require_free_names(self.model)
        known = find_sites(self.model)
        sites = resolve(peft_config, self.model, known)
        for site in sites:
            _check_reached(site, self.model, peft_config.title)
            module = linear_view(self.model.get_submodule(site.name))
            if isinstance(module, MethodLayer):
                base = module.get_base_layer()
            else:
                base = module
                _check_free(site, module, peft_config.title)
            layer_class = peft_config.layer_class(site, base)
            if type(module) is not layer_class:
                _check_free(site, module, peft_config.title)
                _check_direct(site, layer_class)
                layer_class.require_base(site, base, peft_config.title)
        peft_config.check(self.model, sites)
        self._sites = {site.name: site for site in sites}
        self._known_sites = known
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        adapter = next(name for name, known in self.peft_config.items() if known is peft_config)
        sites = tuple(self._sites.values())
        shared = peft_config.new_shared(model, sites)
        if shared is not None:
            reference = next(model.parameters())
            dtype = torch.promote_types(reference.dtype, torch.float32)
            is_empty = any(parameter.is_meta for parameter in shared.parameters())
            device = None if is_empty else reference.device
            self.shared_state[adapter] = shared.to(device=device, dtype=dtype)
        if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            model.requires_grad_(False)
        peft_config.prepare(model, adapter, sites)
        # From here on PEFT compares names; it is told the exact ones, and of nothing to leave out.
        if not peft_config.trains_in_place:
            warn_of_idle_exclusion(peft_config, [s.name for s in self._known_sites])
        peft_config.target_modules = tuple(self._sites) or DUMMY_TARGET_MODULES
        peft_config.exclude_modules = None
        self._saved_whole, peft_config.modules_to_save = peft_config.modules_to_save, None

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

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """float32 at least, or the number format of the base layers; shared state too."""
        for module in self.model.modules():
            if isinstance(module, MethodLayer):
                module.cast_adapter(adapter_name, at_least_float32=autocast_adapter_dtype)
        shared, dtype = self._shared_of(adapter_name), next(self.model.parameters()).dtype
        if shared is not None:
            for name, value in list(shared.named_parameters(recurse=False)):
                shared.register_parameter(name, cast(value, dtype, autocast_adapter_dtype))

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """PEFT's, for shared state too."""
        super().set_requires_grad(adapter_names, requires_grad)
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in names:
            shared = self._shared_of(name)
            if shared is not None:
                shared.requires_grad_(requires_grad)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's hook around a forward pass; one adapter per image is refused."""
        if kwargs.get("adapter_names") is not None:
            raise AdapterError(
                f"adapter_names: got {kwargs['adapter_names']!r}, expected none: one batch runs "
                "through one set of adapters. Call the model once for each, after set_adapter."
            )
        yield

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """PEFT's, which ignores tensors that the file lacks; here they are named."""
        renamed: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, current_names(model, state_dict, adapter_name)
        )
        held = dict(tensors_of(model, adapter_name))
        missing = {name: value for name, value in held.items() if name not in renamed}
        if missing:
            tell_missing(adapter_name, missing, len(held))
        return renamed

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make `adapter_name` active and, unless for inference, the only one that trains.

        Raises:
            AdapterError: two of them train the same module whole, the classifier for example.
        """
        active = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        require_one_each(self.model, active)
        super().set_adapter(adapter_name, inference_mode=inference_mode)
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
        """Merge into the base layers; a safe merge checks all of them before it writes to any.

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
        """PEFT's; a transformers model that can no longer be saved whole says so on saving.

        With `adapter_names`, modules that train whole become those adapters' own, too.
        """
        with kept_on_saving(self.model):
            return super().merge_and_unload(*args, **options)

    def _unload_and_optionally_merge(self, merge: bool = True, **options: Any) -> nn.Module:
        if merge:
            self._check_merge_allowed()
            names = options.get("adapter_names")
            if options.get("safe_merge", False):
                self._check_finite(names)
            if names is not None:
                use_whole(self.model, names, "merge_and_unload")
            for module in self.model.modules():
                if isinstance(module, InPlaceLayer):
                    module.merge(options.get("safe_merge", False), names)
        for module in list(self.model.modules()):
            if isinstance(module, InPlaceLayer):
                module.detach_from_owner()
        return super()._unload_and_optionally_merge(merge=merge, **options)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        how: str | None = None,
        head: str = "auto",
        combination_type: str | None = None,
    ) -> None:
        """Add Σ w_i · adapter_i as `adapter_name`, for methods that define this sum.

        The new adapter is not made active.

        Args:
            how: "compose" (also for None) or "sum"; `how` and `head` are those of
                `vitune.methods.combine_states`.
            combination_type: PEFT's word for `how`: "linear" is "compose", "cat" is "sum".

        Raises:
            AdapterError: unknown or taken names, adapters that do not fit together, or a method
                without this arithmetic.
            VituneError: a combination type that vitune does not have.
        """
        if combination_type is not None:
            check_choice("combination_type", combination_type, tuple(COMBINATION_TYPES))
            how = how or COMBINATION_TYPES[combination_type]
        add_weighted(self, adapters, weights, adapter_name, how or "compose", head)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete `adapter_name` and its shared state; another adapter stays or becomes active."""
        active = [name for name in self.active_adapters if name != adapter_name]
        super().delete_adapter(adapter_name)
        if not self.active_adapters and self.peft_config:
            # PEFT asks the layers which adapter is next, and a linear probe has none.
            self.set_adapter(active or sorted(self.peft_config)[:1])
        self._forget_shared(adapter_name)

    def _forget_shared(self, adapter_name: str) -> None:
        if adapter_name in self.shared_state:
            del self.shared_state[adapter_name]


def _check_reached(site: Site, model: nn.Module, by: str) -> None:
    """Refuse a layer inside a module that holds an adapter: PEFT passes over all that is in it."""
    steps = site.name.split(".")
    for depth in range(1, len(steps)):
        outer = ".".join(steps[:depth])
        module = model.get_submodule(outer)
        if isinstance(module, BaseTunerLayer):
            raise BackboneError(
                f"{by} at {site.name!r} ({site.role}): got a layer inside {outer!r}, which already "
                f"carries the PEFT adapter {_carried(module)}, expected one that PEFT reaches. Add "
                "the adapters in the other order, or keep one of the two methods away from it "
                "(blocks, target_modules, exclude_modules)."
            )


def _check_free(site: Site, module: nn.Module, by: str) -> None:
    """Refuse a layer that holds another method's adapter."""
    if isinstance(module, BaseTunerLayer):
        raise BackboneError(
            f"{by} at {site.name!r} ({site.role}): got a layer that already carries the PEFT "
            f"adapter {_carried(module)}, expected one without. Call merge_and_unload() "
            "or unload() on the model first, or keep one of the two methods away from the layer "
            "(target_modules, exclude_modules)."
        )


def _carried(layer: BaseTunerLayer) -> str:
    """The names of a layer's adapters, and what kind it is."""
    names = sorted(map(str, layer._get_available_adapters()))
    kind = f"{type(layer).__module__.removeprefix('peft.tuners.')}.{type(layer).__name__}"
    return f"{', '.join(names)} ({kind})".lstrip()


def _check_direct(site: Site, layer_class: type[MethodLayer]) -> None:
    """Refuse a layer that acts in its forward pass where the backbone never calls that."""
    if site.direct_weight and not layer_class.mergeable:
        raise BackboneError(
            f"{layer_class.__name__} at {site.name!r} ({site.role}): got an attention that reads "
            "weights itself, expected a method that merges into weights. Choose another method, "
            "or leave the role out with roles=..."
        )
