"""A new adapter made from others in one model, by the rules of their method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from vitune.errors import AdapterError, nearest
from vitune.methods.core.peft_options import PREFIX, method_name


@dataclass(frozen=True)
class AdapterState:
    """One trained adapter without a model: what PEFT writes to its two files.

    Args:
        config: the adapter's configuration.
        tensors: values by name, those of `modules_to_save` (the head) among them.
    """

    config: PeftConfig
    tensors: Mapping[str, Tensor]


def add_weighted(
    tuner: BaseTuner,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    how: str,
    head: str,
) -> None:
    """Add the combination of `adapters` to `tuner` as `adapter_name`, without activating it.

    Raises:
        AdapterError: a name that does not exist, or one that is already taken.
        VituneError: what the method's `combined` refuses.
    """
    for name in adapters:
        if name not in tuner.peft_config:
            raise AdapterError(
                f"adapters: got {name!r}, expected adapters of this model. "
                f"{nearest(name, tuner.peft_config)}"
            )
    if "." in adapter_name or hasattr(nn.ParameterDict, adapter_name):
        raise AdapterError(
            f"adapter_name: got {adapter_name!r}, expected a plain word that torch's ParameterDict "
            "can take as a key. Choose another name."
        )
    if adapter_name in tuner.peft_config:
        raise AdapterError(
            f"adapter_name: got {adapter_name!r}, expected a new name. Delete the adapter of that "
            "name first, or choose another."
        )
    check_weights(adapters, weights)
    states = [
        AdapterState(tuner.peft_config[name], _tensors(tuner.model, name)) for name in adapters
    ]
    combined = combined_state(states, weights, how, head)
    tuner.peft_config[adapter_name] = combined.config
    tuner.inject_adapter(tuner.model, adapter_name)
    places = _tensors(tuner.model, adapter_name)
    assert places.keys() == combined.tensors.keys()
    with torch.no_grad():
        for name, value in combined.tensors.items():
            places[name].copy_(value)


def combined_state(
    states: Sequence[AdapterState], weights: Sequence[float], how: str, head: str
) -> AdapterState:
    """One adapter for Σ w_i · adapter_i, by the arithmetic of their method.

    Raises:
        AdapterError: there is no arithmetic, or the weights or adapters do not fit together.
    """
    check_weights(states, weights)
    require_combining(states)
    config: Any = states[0].config
    combined: AdapterState = config.combined(states, weights, how, head)
    return combined


def require_combining(states: Sequence[AdapterState]) -> None:
    """Refuse adapters of a method that cannot be combined.

    Raises:
        AdapterError: there is one.
    """
    for state in states:
        if not getattr(state.config, "combines", False):
            raise not_combining(state.config)


def not_combining(config: Any) -> AdapterError:
    """The error for a method whose adapters cannot be added."""
    name = method_name(config)
    kinds: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    able = sorted({kind.method for kind in kinds.values() if getattr(kind, "combines", False)})
    return AdapterError(
        f"combine: got method {name!r}, expected one whose adapters can be added: "
        f"{', '.join(able)}."
    )


def check_weights(adapters: Sequence[Any], weights: Sequence[float]) -> None:
    """Refuse anything but one finite weight per adapter.

    Raises:
        AdapterError: there are none, too many or too few, or one is NaN or infinite.
    """
    if not adapters or len(weights) != len(adapters):
        raise AdapterError(
            f"weights: got {len(weights)} for {len(adapters)} adapters, expected one weight per "
            "adapter, and at least one adapter."
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise AdapterError(f"weights: got {list(weights)!r}, expected finite numbers.")


def _tensors(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """The parameters of `adapter`, by names without the adapter's; the model's own, not copies."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            for part in module.adapter_layer_names:
                values = getattr(module, part)
                if adapter in values:
                    found[f"{name}.{PREFIX}{part}"] = values[adapter]
        elif isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            saved = module.modules_to_save[adapter].state_dict()
            found.update({f"{name}.{key}": value for key, value in saved.items()})
    return found
