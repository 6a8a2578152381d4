"""The classifier of a network: where it is, how many outputs it has, how a new one starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from vitune.backbones import layouts
from vitune.backbones.structure import find, joined, root_prefix, unwrapped
from vitune.errors import BackboneError, nearest

HEAD_INITS: dict[str, Callable[[nn.Linear], Any]] = {
    "zero": lambda head: nn.init.zeros_(head.weight),
    "linear": lambda head: nn.Linear.reset_parameters(head),
    "trunc_normal": lambda head: nn.init.trunc_normal_(head.weight, std=0.02),
    "kaiming_normal": lambda head: nn.init.kaiming_normal_(head.weight, mode="fan_out"),
}
"""How a classifier starts, by name; its bias is 0 in all but "linear", PyTorch's own."""


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Qualified names of the classifier's linear layers; a distilled model has two."""
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
    """Draw every classifier anew from torch's generator, as HEAD_INITS says.

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
    """Outputs of the classifier, 0 where there is none."""
    name = head_name(model)
    if name is None:
        return 0
    head = unwrapped(model.get_submodule(name))
    assert isinstance(head, nn.Linear)
    return head.out_features


def _root_head_names(root: nn.Module) -> tuple[str, ...]:
    first = find(root, layouts.HEADS, nn.Linear)
    get_classifier: Any = getattr(root, "get_classifier", None)
    if first is None and callable(get_classifier):
        given = get_classifier()
        first = next(
            (
                name
                for name, module in root.named_modules()
                if module is given and isinstance(unwrapped(module), nn.Linear)
            ),
            None,
        )
    second = find(root, layouts.SECOND_HEADS, nn.Linear)
    return tuple(name for name in (first, second) if name is not None)
