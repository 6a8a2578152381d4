"""Copies of a network that share its tensors, possibly with heads of another size."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import chain

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from vitune.backbones import head_names, unwrapped


def sharing_copy(network: nn.Module, cloned: Iterable[Tensor] = ()) -> nn.Module:
    """A copy of `network`'s modules over the same memory; replacing a tensor affects only the copy.

    Args:
        cloned: tensors that get their own memory in the copy, because it will write to them.
    """
    own = {id(tensor) for tensor in cloned}
    memo: dict[int, object] = {}
    for tensor in chain(network.parameters(), network.buffers()):
        value = tensor.detach().clone() if id(tensor) in own else tensor.detach()
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(value, requires_grad=False) if is_parameter else value
    return copy.deepcopy(network, memo)


def resize_heads(network: nn.Module, num_classes: int) -> None:
    """Give every classifier `num_classes` outputs, with weights of zero."""
    for name in head_names(network):
        module = network.get_submodule(name)
        heads = [unwrapped(module)]
        if isinstance(module, ModulesToSaveWrapper):
            heads += list(module.modules_to_save.values())
        for head in heads:
            _resize(head, num_classes)


def extra_bytes(network: nn.Module, base: nn.Module, *others: Tensor) -> int:
    """The memory that `network` uses beyond what it shares with `base` and `others`."""
    own, shared = _storages(_tensors(network)), _storages((*_tensors(base), *others))
    return sum(size for place, size in own.items() if place not in shared)


def _tensors(network: nn.Module) -> Iterable[Tensor]:
    return chain(network.parameters(), network.buffers())


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of each piece of memory that holds `tensors`, by its address."""
    pieces = (tensor.untyped_storage() for tensor in tensors)
    return {piece.data_ptr(): piece.nbytes() for piece in pieces}


def _resize(head: nn.Module, num_classes: int) -> None:
    for name in ("weight", "bias"):
        old = head._parameters.get(name)
        if old is not None:
            value = torch.zeros(num_classes, *old.shape[1:], dtype=old.dtype, device=old.device)
            head._parameters[name] = nn.Parameter(value, requires_grad=False)
    for name in ("out_features", "out_channels"):
        if hasattr(head, name):
            setattr(head, name, num_classes)
