"""Merged transformers models: a bias that their class does not have is lost on loading.

Merging may give a bias to a layer that had none. `from_pretrained` builds the model from its
configuration and drops tensors that the configuration does not provide for.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitune.backbones.observation import observe, run_once
from vitune.errors import AdapterError, listed

IDLE_TOLERANCE = 1e-4


class Unsavable:
    """Replaces `save_pretrained` of a model that could not be fully loaded again."""

    def __init__(self, model_class: str, biases: tuple[str, ...]) -> None:
        self.model_class, self.biases = model_class, biases

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Refuse.

        Raises:
            AdapterError: always.
        """
        raise AdapterError(
            f"save_pretrained: got a merged {self.model_class} with biases that its class does "
            f"not have ({listed(self.biases, 3)}), expected none: from_pretrained would drop them. "
            "Save the adapter un-merged, use 'vitune merge' with vitune.load_run, or train with "
            "roles=... that leave these layers out."
        )


def make_savable(model: nn.Module, added: Sequence[str]) -> None:
    """Let every transformers model in `model` keep the biases `added`, or refuse to be saved.

    If a switch of the configuration gives its class these biases, it is turned on, on a copy. A
    bias on which the output does not depend (of the keys, under plain softmax attention) is
    dropped. For any other bias, `save_pretrained` raises an AdapterError.
    """
    for prefix, part in list(_transformers_models(model)):
        start = f"{prefix}." if prefix else ""
        names = {name.removeprefix(start) for name in added if name.startswith(start)}
        biases = sorted(names & set(part.state_dict()))
        if biases and not _switched_on(part, biases):
            lost = [name for group in _alike(biases) for name in _without_idle(part, group)]
            if lost:
                part.save_pretrained = Unsavable(type(part).__name__, tuple(lost))


def _transformers_models(model: nn.Module) -> Iterator[tuple[str, Any]]:
    library = sys.modules.get("transformers.modeling_utils")
    if library is not None:
        for name, module in model.named_modules():
            if isinstance(module, library.PreTrainedModel):
                yield name, module


def _switched_on(part: Any, biases: Sequence[str]) -> bool:
    """Turn on the switches that give the class all of `biases`; False if none do."""
    config = copy.deepcopy(part.config)
    known = _tensors_of_class(part, config)
    for owner in (config, *(v for v in vars(config).values() if hasattr(v, "model_type"))):
        switches = [key for key, value in vars(owner).items() if "bias" in key and value is False]
        for key in switches:
            setattr(owner, key, True)
            given = _tensors_of_class(part, config)
            if set(biases) & (set(given) - set(known)):
                known = given
            else:
                setattr(owner, key, False)
    missing = {name: known[name] for name in set(known) - set(part.state_dict())}
    if not set(biases) <= set(known) or any(tensor.dim() != 1 for tensor in missing.values()):
        return False
    part.config = config
    for name, tensor in missing.items():
        _set_bias(part, name, torch.zeros(tensor.shape))
    return True


def _tensors_of_class(part: Any, config: Any) -> dict[str, Tensor]:
    """The tensors, without values, of a new model of the same class; {} if it refuses."""
    try:
        with torch.device("meta"):
            return dict(type(part)(config).state_dict())
    except Exception:  # a combination of switches that the class does not support
        return {}


def _alike(names: Sequence[str]) -> list[list[str]]:
    """Groups of names that differ only by block index."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    return list(groups.values())


def _without_idle(part: Any, names: Sequence[str]) -> Sequence[str]:
    """`names`; or nothing, with the biases dropped, if the output does not depend on them."""
    biases, seen = {name: part.get_parameter(name) for name in names}, observe(part, [])
    if seen is None:
        return names
    for name, bias in biases.items():
        _set_bias(part, name, torch.randn(bias.shape, generator=torch.Generator().manual_seed(0)))
    with_others = _tensors(run_once(part, seen.image_size))
    for name in biases:
        _set_bias(part, name, None)
    pairs = zip(_tensors(run_once(part, seen.image_size)), with_others, strict=True)
    if all((a - b).abs().max() <= IDLE_TOLERANCE * b.abs().max() for a, b in pairs):
        return ()
    for name, bias in biases.items():
        _set_bias(part, name, bias)
    return names


def _tensors(output: Any) -> list[Tensor]:
    """The tensors in a transformers model's output."""
    values = output.values() if hasattr(output, "values") else output
    return [value for value in values if isinstance(value, Tensor)]


def _set_bias(part: Any, name: str, value: Tensor | None) -> None:
    owner, _, leaf = name.rpartition(".")
    layer = part.get_submodule(owner)
    if value is not None and not isinstance(value, nn.Parameter):
        value = nn.Parameter(value.to(layer.weight), requires_grad=False)
    layer.register_parameter(leaf, value)
