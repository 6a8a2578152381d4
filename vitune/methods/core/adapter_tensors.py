"""An adapter's tensors by name: those a model holds, and those of a file, old or new."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from vitune.backbones.sites import Site
from vitune.errors import AdapterError, listed
from vitune.methods.core.layer import MethodLayer
from vitune.methods.core.peft_options import PREFIX


class SharedState(nn.ModuleDict):
    """What the layers of one adapter share, by the adapter's name."""


def current_names(
    model: nn.Module, tensors: Mapping[str, Tensor], adapter: str = "default"
) -> dict[str, Tensor]:
    """`tensors` of a file under today's names: files of vitune 0.1 had no PREFIX in them."""
    today = {}
    for name, _ in tensors_of(model, adapter):
        key = BaseTuner._remove_adapter_name_from_key(name, adapter)
        for start in ("", "base_model.model."):
            today[start + key.replace(f".{PREFIX}", ".")] = start + key
    return {today.get(name, name): value for name, value in tensors.items()}


def sites_in(state_dict: Iterable[str], sites: Sequence[Site]) -> tuple[str, ...]:
    """The sites that hold the tensors of a state dict, for each tensor the innermost."""
    places = sorted((site.name for site in sites if site.role != "head"), key=len, reverse=True)
    keys = [key.removeprefix("base_model.model.") for key in state_dict]
    found = (next((p for p in places if key.startswith(f"{p}.")), None) for key in keys)
    return tuple(dict.fromkeys(place for place in found if place is not None))


def tensors_of(model: nn.Module, adapter: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors that an adapter's file holds, without whole modules, by name in `model`."""
    for name, module in model.named_modules():
        if isinstance(module, MethodLayer):
            for part in (*module.adapter_layer_names, *module.other_param_names):
                values = getattr(module, part)
                if adapter in values:
                    yield f"{name}.{PREFIX}{part}.{adapter}", values[adapter]
        elif isinstance(module, SharedState) and adapter in module:
            for part, value in module[adapter].named_parameters(recurse=False):
                yield f"{name}.{adapter}.{part}", value


def tell_missing(adapter: str, missing: Mapping[str, Tensor], number: int) -> None:
    """Warn of tensors that a checkpoint lacks; an error if they have no values to keep."""
    text = (
        f"adapter {adapter!r}: got a checkpoint without {len(missing)} of {number} tensors "
        f"({listed(sorted(missing))})"
    )
    if any(value.is_meta for value in missing.values()):
        raise AdapterError(f"{text}, expected all. Load it without low_cpu_mem_usage.")
    warnings.warn(f"{text}; they keep the values they start with.", stacklevel=4)
