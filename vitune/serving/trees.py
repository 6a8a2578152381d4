"""One PEFT model per configuration, through which any number of adapters run in turn.

An RLRR adapter on a ViT-B/16 is 1.2 MB of vectors; a PEFT model around it is some 2,000 Python
objects and takes half a second to build. So adapters trained with the same configuration share one
such model (a tree), and each keeps only its values, in one block of memory.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.save_and_load import set_peft_model_state_dict
from torch import Tensor, nn

from vitune.adapters import TENSORS, check_tensors, fingerprint_of, inject, merged_model
from vitune.backbones import head_names
from vitune.cards import AdapterCard
from vitune.errors import AdapterError
from vitune.fewer_tokens import TokenPlan, reduce_tokens
from vitune.methods import MethodLayer, current_names, get_method
from vitune.serving.sharing import extra_bytes, resize_heads, sharing_copy
from vitune.tensors import read_tensors

WITHOUT_EFFECT = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision",
    "task_type",
)  # fmt: skip
"""Entries of a PEFT configuration that say nothing about what an adapter computes."""

ALIGNMENT = 16


@dataclass(frozen=True)
class Slot:
    """A location in a tree that holds a value of the adapter: module name, and where in it."""

    module: str
    leaf: str
    is_parameter: bool


@dataclass(frozen=True, eq=False)
class Values:
    """All values of one adapter in one block of memory, in the order of its tree's slots.

    Args:
        memory: bytes, (n,) uint8.
        layout: offset, number format and shape of each value.
    """

    memory: Tensor
    layout: tuple[tuple[int, torch.dtype, tuple[int, ...]], ...]

    @classmethod
    def packed(
        cls, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype], device: torch.device
    ) -> Values:
        """A copy of `tensors`, each in its own number format."""
        layout, end = [], 0
        for tensor, dtype in zip(tensors, dtypes, strict=True):
            layout.append((end, dtype, tuple(tensor.shape)))
            end += -(-tensor.numel() * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        memory = torch.zeros(end, dtype=torch.uint8, device=device)
        packed = cls(memory, tuple(layout))
        for view, tensor in zip(packed, tensors, strict=True):
            view.copy_(tensor)
        return packed

    def __iter__(self) -> Iterator[Tensor]:
        for start, dtype, shape in self.layout:
            size = torch.Size(shape).numel() * dtype.itemsize
            yield self.memory[start : start + size].view(dtype).view(shape)


class Tree:
    """A PEFT model over the shared backbone, for all adapters of one configuration.

    `read` and `bind` use separate models, so that one thread can read an adapter while another runs
    one.

    Args:
        network: the backbone; its tensors are shared, never written to.
        config: of the first adapter.
        card: of the first adapter; others may have more or fewer classes, unless the method itself
            has tensors of that size.
    """

    def __init__(self, network: nn.Module, config: PeftConfig, card: AdapterCard) -> None:
        num_classes = len(card.classes)
        self.num_classes = num_classes
        base = sharing_copy(network)
        resize_heads(base, num_classes)
        known = {id(tensor) for tensor in (*base.parameters(), *base.buffers())}
        config.inference_mode = True
        self.base = network
        self._device = next(network.parameters()).device
        self.reader = inject(base, config).requires_grad_(False).eval()
        self.fingerprint = fingerprint_of(self.reader)
        self.slots = tuple(_slots(self.reader, known))
        self.runner: PeftModel = sharing_copy(self.reader)
        self.tokens = TokenPlan.parse(card.tokens)
        # Merged weights go into copies of a network that keeps every token: `_fewer` adds the rest.
        self._whole = sharing_copy(self.reader) if self.tokens.in_inference else self.runner
        self._fewer(self.runner)
        self._shapes = [tuple(self._value(slot).shape) for slot in self.slots]
        self._dtypes = [self._value(slot).dtype for slot in self.slots]
        self._places = self._slots_by_key()
        self._heads = tuple(f"{name}." for name in head_names(self.reader))
        self.mergeable = get_method(card.method).mergeable
        self.merged_bytes = sum(tensor.nbytes for tensor in network.parameters())
        self._bound: Values | None = None

    def read(self, folder: Path, card: AdapterCard) -> Values:
        """The values of the adapter in `folder`, every tensor checked.

        Raises:
            AdapterError: another backbone, a damaged file, tensors that do not fit or are not
                finite.
        """
        if card.fingerprint not in (None, self.fingerprint):
            raise AdapterError(
                f"backbone: got an adapter of {card.backbone!r} with weights {card.fingerprint}, "
                f"expected {self.fingerprint}, those of the served backbone."
            )
        tensors = read_tensors(folder / TENSORS)
        num_classes = len(card.classes)
        values = self._in_order(tensors, num_classes)
        if values is None:
            tensors = current_names(self.reader, tensors)
            resize_heads(self.reader, num_classes)
            check_tensors(self.reader, tensors, folder)
        card.check_file(folder / TENSORS)
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise AdapterError(f"adapter: got {name} with NaN or infinity, expected numbers.")
        if values is None:
            set_peft_model_state_dict(self.reader, tensors)
            values = [self._value(slot) for slot in self.slots]
        return Values.packed(values, self._dtypes, self._device)

    def _slots_by_key(self) -> dict[str, int]:
        """Where each tensor of an adapter's file goes; empty if one tensor is not one slot.

        With it, reading a file takes only as long as its bytes; PEFT's own way walks the whole
        model.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = get_peft_model_state_dict(self.reader)
        numbers = {self._value(slot).data_ptr(): n for n, slot in enumerate(self.slots)}
        found = {key: numbers.get(value.data_ptr(), -1) for key, value in state.items()}
        return found if sorted(found.values()) == list(range(len(self.slots))) else {}

    def _in_order(self, tensors: Mapping[str, Tensor], num_classes: int) -> list[Tensor] | None:
        """A file's tensors in the order of the slots; None if they do not match the slots."""
        if not self._places or tensors.keys() != self._places.keys():
            return None
        ordered: list[Tensor] = [torch.empty(0)] * len(self.slots)
        for key, tensor in tensors.items():
            number = self._places[key]
            shape = self._shapes[number]
            if self.slots[number].module.startswith(self._heads):
                shape = (num_classes, *shape[1:])
            if tuple(tensor.shape) != shape:
                return None
            ordered[number] = tensor
        return ordered

    def bind(self, values: Values) -> PeftModel:
        """The model that runs the adapter of `values`, un-merged; until the next call."""
        if self._bound is not values:
            self._put(values, self.runner)
            if self._whole is not self.runner:
                self._put(values, self._whole)
            self._bound = values
        return self.runner

    def merged(self, values: Values) -> nn.Module | None:
        """The plain network with the adapter in its weights; None if PEFT cannot merge it.

        Everything that the merge does not change is shared with the backbone.
        """
        self.bind(values)
        model: Any = sharing_copy(self._whole, _written_in_place(self._whole))
        try:
            merged = merged_model(model, safe=False)
        except AdapterError as error:
            if not isinstance(error.__cause__, NotImplementedError):
                raise
            self.mergeable = False
            return None
        self.merged_bytes = extra_bytes(merged, self.base, values.memory)
        self._fewer(merged)
        return merged

    def _fewer(self, model: nn.Module) -> None:
        """Merge tokens in `model` if the adapter's runs do so in inference."""
        if self.tokens.in_inference:
            reduce_tokens(model, self.tokens)

    def _put(self, values: Values, model: nn.Module) -> None:
        for slot, value in zip(self.slots, values, strict=True):
            owner = model.get_submodule(slot.module)
            if slot.is_parameter:
                owner._parameters[slot.leaf] = nn.Parameter(value, requires_grad=False)
            else:
                owner._buffers[slot.leaf] = value

    def _value(self, slot: Slot) -> Tensor:
        owner = self.reader.get_submodule(slot.module)
        held: Mapping[str, Any] = owner._parameters if slot.is_parameter else owner._buffers
        value: Tensor = held[slot.leaf]
        return value


def tree_key(config: PeftConfig, card: AdapterCard) -> str:
    """What adapters must share to run through one tree."""
    values = {k: v for k, v in config.to_dict().items() if k not in WITHOUT_EFFECT}
    plan = TokenPlan.parse(card.tokens)
    tokens = str(plan) if plan.in_inference else ""
    return json.dumps([card.method, card.plugin, tokens, values], sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def _slots(model: nn.Module, known: set[int]) -> Iterator[Slot]:
    """Where the adapter's own parameters and stored buffers are."""
    for name, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in known:
                yield Slot(name, leaf, True)
        for leaf, buffer in module._buffers.items():
            stored = leaf not in module._non_persistent_buffers_set
            if buffer is not None and stored and id(buffer) not in known:
                yield Slot(name, leaf, False)


def _written_in_place(model: nn.Module) -> Iterator[Tensor]:
    """Weights that PEFT's own layers write to when they merge; vitune's layers replace theirs."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, MethodLayer):
            yield from module.get_base_layer().parameters()
