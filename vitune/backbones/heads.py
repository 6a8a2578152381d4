"""The classifier of a network: its location, its outputs, the initialisation of a new one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from vitune.backbones import layouts
from vitune.backbones.structure import find, joined, root_prefix, unwrapped, walk
from vitune.errors import BackboneError, nearest

HEAD_INITS: dict[str, Callable[[nn.Linear], Any]] = {
    "zero": lambda head: nn.init.zeros_(head.weight),
    "linear": lambda head: nn.Linear.reset_parameters(head),
    "trunc_normal": lambda head: nn.init.trunc_normal_(head.weight, std=0.02),
    "kaiming_normal": lambda head: nn.init.kaiming_normal_(head.weight, mode="fan_out"),
}
"""Initialisations of a classifier, by name; its bias is 0 in all but "linear", PyTorch's own."""


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Qualified names of the classifier's last layers; a distilled or a two-scale model has two."""
    prefix = root_prefix(model)
    names = _root_head_names(model.get_submodule(prefix))
    return tuple(joined(prefix, name) for name in names)


def head_name(model: nn.Module) -> str | None:
    """Qualified name of the classifier (of a distilled model, its class-token one), or None."""
    return next(iter(head_names(model)), None)


def zero_heads(model: nn.Module) -> None:
    """Set weight and bias of every classifier to zero: all classes start equally likely."""
    for name in head_names(model):
        for parameter in unwrapped(model.get_submodule(name)).parameters(recurse=False):
            nn.init.zeros_(parameter)


def start_heads(model: nn.Module, init: str) -> None:
    """Re-initialise every classifier from torch's generator, by HEAD_INITS.

    Raises:
        BackboneError: an unknown name.
    """
    if init not in HEAD_INITS:
        raise BackboneError(
            f"head_init: got {init!r}, expected a known one. {nearest(init, HEAD_INITS)}"
        )
    for name in head_names(model):
        head = unwrapped(model.get_submodule(name))
        assert isinstance(head, nn.Linear)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
        HEAD_INITS[init](head)


def num_outputs(model: nn.Module) -> int:
    """Outputs of the classifier; 0 if there is none."""
    name = head_name(model)
    if name is None:
        return 0
    return _num_outputs(model.get_submodule(name)) or 0


def _root_head_names(root: nn.Module) -> tuple[str, ...]:
    first = find(root, layouts.HEADS, nn.Linear)
    if first is None:
        return _asked_head_names(root)
    second = find(root, layouts.SECOND_HEADS, nn.Linear)
    return (first,) if second is None else (first, second)


def _asked_head_names(root: nn.Module) -> tuple[str, ...]:
    """The layers that compute the logits, within what a timm model returns as its classifier."""
    get_classifier: Any = getattr(root, "get_classifier", None)
    given: Any = get_classifier() if callable(get_classifier) else None
    wholes = given if isinstance(given, tuple | list | nn.ModuleList) else (given,)
    inside = [
        (name, module)
        for name, module in walk(root, lambda module: any(module is whole for whole in wholes))
        if any(module is whole for whole in wholes)
    ]
    found = []
    for name, module in inside:
        parts = [(name, module), *walk(module, lambda _: False, name)]
        num_classes = _num_outputs(module) or getattr(root, "num_classes", None)
        found += [name for name, part in parts if _num_outputs(part) == num_classes]
    return tuple(found)


def _num_outputs(module: nn.Module) -> int | None:
    """Outputs of a linear layer or convolution; None for anything else."""
    layer = unwrapped(module)
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) else None
