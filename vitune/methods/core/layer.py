"""The layer that replaces an adapted module and holds its adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from vitune.backbones.sites import Site
from vitune.errors import AdapterError
from vitune.methods.core.base_layers import require_own_weight
from vitune.methods.core.peft_options import PREFIX

Tensors = dict[str, Tensor | None]
DeltaNoise = Callable[[int | None, Tensor], Tensor]
"""(block index, change of the output) -> the change with noise on it."""


class MethodLayer(nn.Module, BaseTunerLayer):
    """A module of the backbone with the adapters that act on it, PEFT's `BaseTunerLayer`.

    A subclass names its parameters in `adapter_layer_names`, creates them in `new_parameters`, and
    computes the adapted weight and bias in `adapt`; that alone gives it a forward pass, merging and
    un-merging. Override `adapted_forward` if there is a faster way; it must agree with `adapt`.
    """

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ()
    derived_names: tuple[str, ...] = ()
    no_decay: ClassVar[frozenset[str]] = frozenset()
    mergeable: ClassVar[bool] = True
    merge_tolerance: ClassVar[float] = 1e-5
    exposes_delta: ClassVar[bool] = True
    has_per_sample: ClassVar[bool] = False
    patches_only: ClassVar[bool] = False
    inner_sites: tuple[Site, ...] = ()
    delta_noise: DeltaNoise | None = None
    saved_whole: tuple[ModulesToSaveWrapper, ...] = ()

    def __init__(self, base_layer: nn.Module, site: Site) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.site = site
        self.configs: dict[str, Any] = {}
        self.shared: dict[str, nn.Module | None] = {}
        self.merged_adapters: list[str] = []
        self._originals: Tensors | None = None
        self.new_containers()

    def __init_subclass__(cls, **options: Any) -> None:
        """Make `self.name` an alias of what is registered as PREFIX + name."""
        super().__init_subclass__(**options)
        for name in (*cls.adapter_layer_names, *cls.other_param_names, *cls.derived_names):
            setattr(cls, name, property(partial(_registered, PREFIX + name)))

    def new_containers(self) -> None:
        """Empty dictionaries for the adapters' parameters, by adapter name."""
        for name in self.adapter_layer_names:
            self.add_module(PREFIX + name, nn.ParameterDict())
        for name in self.other_param_names:
            self.add_module(PREFIX + name, BufferDict(persistent=True))
        for name in self.derived_names:
            self.add_module(PREFIX + name, BufferDict(persistent=False))

    @classmethod
    def require_base(cls, site: Site, module: nn.Module, by: str) -> None:
        """Refuse a base layer that this kind of layer could not act on.

        Raises:
            BackboneError: here, where its weight cannot be read, changed and written back.
        """
        require_own_weight(site, module, by)

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        """Initial values by parameter name; a name left out is absent from this adapter."""
        return {}

    def new_buffers(self, config: Any) -> Mapping[str, Tensor]:
        """State that the adapter must save but not train, by name in `other_param_names`."""
        return {}

    def new_derived(self, config: Any) -> Mapping[str, Tensor]:
        """Tensors that follow from the base weight alone, by name in `derived_names`; never saved.

        They are recomputed whenever the adapter is loaded. Read `original_tensors()`, not the base
        layer: another adapter may be merged into it.
        """
        return {}

    def penalty(self, adapter: str, progress: float, labels: Tensor | None = None) -> Tensor | None:
        """A term that the method adds to the training loss, None for most.

        Args:
            progress: completed share of training, in [0, 1].
            labels: of the batch, (b,) or target shares (b, c); None if there are none.
        """
        return None

    def exit_head(self, adapter: str) -> Callable[[Tensor], Tensor] | None:
        """Tokens after this layer's block -> logits of an early exit there; None for most."""
        return None

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        """The base layer's {'weight', 'bias'} after `adapter`, differentiable."""
        raise NotImplementedError

    def per_sample_gradients(self, adapter: str, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
        """Per-image gradients of the adapter's parameters, by parameter name.

        For training with differential privacy; a layer that implements them sets `has_per_sample`.
        For all others they are traced, which costs more.

        Shapes: x (b, ..., i), the input; grad (b, ..., o), the loss' gradient in the output; each
            result (b, *shape of the parameter).
        """
        raise NotImplementedError

    def functional(self, x: Tensor, tensors: Tensors) -> Tensor:
        """The base layer's forward pass with `tensors` in place of its own."""
        raise NotImplementedError

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        """The output with exactly one adapter active."""
        return self.functional(x, self.adapt(self.base_tensors(), adapter))

    def add_adapter(self, adapter: str, config: Any, shared: nn.Module | None) -> None:
        """Create the parameters of `adapter`, in at least float32, on the base layer's device."""
        self.configs[adapter] = config
        self.shared[adapter] = shared
        reference = self.reference_tensor()
        dtype = torch.promote_types(reference.dtype, torch.float32)
        for name, value in {**self.new_buffers(config), **self.new_derived(config)}.items():
            getattr(self, name)[adapter] = value.to(reference.device)
        for name, value in self.new_parameters(config, shared).items():
            value = value.to(device=reference.device, dtype=dtype)
            getattr(self, name)[adapter] = nn.Parameter(value)

    def reference_tensor(self) -> Tensor:
        """A tensor of the base layer, to take the device and number format from."""
        base = self.get_base_layer()
        own = getattr(base, "weight", None)
        return own if isinstance(own, Tensor) else next(base.parameters(), torch.empty(0))

    def enable_adapters(self, enabled: bool) -> None:
        """PEFT's, also for modules that train whole: transformers re-enables only layers."""
        super().enable_adapters(enabled)
        for module in self.saved_whole if enabled else ():
            module.enable_adapters(True)

    def cast_adapter(self, adapter: str, *, at_least_float32: bool) -> None:
        """Convert the parameters of `adapter` to the base layer's number format, or to float32."""
        dtype = self.reference_tensor().dtype
        for name in self.adapter_layer_names:
            values = getattr(self, name)
            if adapter in values:
                values[adapter] = cast(values[adapter], dtype, at_least_float32)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """PEFT's, without its rounding to the base layer's number format on the way."""
        device = device or self.reference_tensor().device
        for name in (*self.adapter_layer_names, *self.other_param_names, *self.derived_names):
            values = getattr(self, name)
            if adapter_name in values and not values[adapter_name].is_meta:
                values[adapter_name] = values[adapter_name].to(device)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete `adapter_name` from this layer; PEFT chooses the next active one."""
        self.configs.pop(adapter_name, None)
        self.shared.pop(adapter_name, None)
        for name in self.derived_names:
            if adapter_name in getattr(self, name):
                del getattr(self, name)[adapter_name]
        super().delete_adapter(adapter_name)

    def parameter(self, name: str, adapter: str) -> Tensor | None:
        """The parameter `name` of `adapter`, or None."""
        value: Tensor | None = getattr(self, name).get(adapter)
        return value

    def base_tensors(self) -> Tensors:
        """The base layer's own weight and bias."""
        base = self.get_base_layer()
        return {"weight": base.weight, "bias": getattr(base, "bias", None)}

    def original_tensors(self) -> Tensors:
        """The base layer's pre-trained weight and bias, also while adapters are merged into it."""
        return self._originals or self.base_tensors()

    def effective_tensors(self) -> Tensors:
        """The weight and bias currently in effect, differentiable in the adapters."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        tensors = self.base_tensors()
        if not self.disable_adapters and not self.merged:
            for adapter in self.adapters_here():
                tensors = self.adapt(tensors, adapter)
        return tensors

    def adapters_here(self) -> list[str]:
        """The active adapters of this layer, in the order in which they apply."""
        return [adapter for adapter in self.active_adapters if adapter in self.configs]

    def _get_available_adapters(self) -> set[str]:
        """For PEFT; a layer may belong to an adapter without having parameters of its own."""
        return set(self.configs)

    def _all_available_adapter_names(self) -> list[str]:
        return sorted(self.configs)

    @property
    def weight(self) -> Tensor:
        """The effective weight: modules that read `.weight` themselves get the adapted one."""
        return self._as_read("weight")  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The effective bias, or None."""
        return self._as_read("bias")

    def _as_read(self, name: str) -> Tensor | None:
        """An effective tensor in the dtype that the base layer's owner expects."""
        base = self.base_tensors()
        if name not in base:
            raise AttributeError(f"{type(self.get_base_layer()).__name__!r} has no {name!r}")
        tensor, weight = self.effective_tensors()[name], base.get("weight")
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
        """base + delta, with noise on delta if a training objective requests it."""
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
            raise unmergeable(self.configs[names[0]])
        originals = self.base_tensors()
        tensors = self.merged_tensors(names)
        if safe_merge:
            self.check_finite(tensors)
        self._originals = self._originals or originals
        self._install(tensors)
        self.merged_adapters.extend(names)

    def merged_tensors(self, names: Sequence[str]) -> Tensors:
        """The base layer's tensors after merging `names`, frozen and in its dtype."""
        originals = tensors = self.base_tensors()
        with torch.no_grad():
            for name in names:
                tensors = self.adapt(tensors, name)
        return {key: _frozen_like(value, originals) for key, value in tensors.items()}

    def check_finite(self, tensors: Tensors) -> None:
        """Refuse to merge tensors that contain NaN or infinity.

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
        """Put back the original tensors that `merge` replaced: the base is restored bit for bit."""
        if self._originals is not None:
            self._install(self._originals)
        self._originals = None
        self.merged_adapters.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MethodLayer:
        """`to`, `half` and the like also apply to the originals that a merge has set aside."""
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


def _registered(key: str, layer: nn.Module) -> nn.Module:
    found = layer._modules[key]
    assert found is not None
    return found


class InPlaceLayer(MethodLayer):
    """A layer that replaces a parameter inside a module, not the module."""

    def detach_from_owner(self) -> None:
        """Make the owner a plain module again, with its current value."""
        raise NotImplementedError


def cast(value: nn.Parameter, dtype: torch.dtype, at_least_float32: bool) -> nn.Parameter:
    """`value` in `dtype`, or in a type that holds both it and float32; itself if already so."""
    if at_least_float32:
        dtype = torch.promote_types(dtype, torch.float32)
    if value.dtype == dtype or not value.is_floating_point():
        return value
    return nn.Parameter(value.detach().to(dtype), value.requires_grad)


def unmergeable(config: Any) -> AdapterError:
    """The error for merging a method that does not merge."""
    return AdapterError(
        f"merge: got method {config.method!r}, expected one that merges. "
        "It changes more than weights; keep it un-merged ('vitune methods' lists which methods "
        "merge)."
    )


def _frozen_like(tensor: Tensor | None, originals: Tensors) -> nn.Parameter | None:
    """`tensor` as a frozen parameter in the base weight's dtype."""
    if tensor is None or any(tensor is original for original in originals.values()):
        return tensor  # type: ignore[return-value]
    reference = originals["weight"]
    dtype = tensor.dtype if reference is None else reference.dtype
    return nn.Parameter(tensor.detach().to(dtype), requires_grad=False)
