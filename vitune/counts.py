"""Counts of trained parameters: how many, in which roles, out of how many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from vitune.methods import MethodLayer
from vitune.runs import TrainedPart


@dataclass(frozen=True)
class ParameterCounts:
    """How many parameters train, out of how many.

    Args:
        trainable: all that train.
        head: those of the classifier head among them.
        total: of the backbone with its head, without adapters.
    """

    trainable: int
    head: int
    total: int

    @property
    def without_head(self) -> int:
        """Trained parameters without the classifier head: the figure that papers print."""
        return self.trainable - self.head

    @property
    def share(self) -> float:
        """Trained parameters without the head, as a share of the backbone."""
        return self.without_head / max(1, self.total)


def count_parameters(model: PeftModel) -> ParameterCounts:
    """Trained parameters of `model`, each counted once, with the head separate."""
    inside_head = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
        for parameter in module.parameters()
        if parameter.requires_grad
    }
    trained = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    added = {id(p) for p in _adapter_parameters(model)}
    return ParameterCounts(
        trainable=sum(trained.values()),
        head=sum(size for key, size in trained.items() if key in inside_head),
        total=sum(p.numel() for p in model.parameters() if id(p) not in added),
    )


def trained_parts(model: PeftModel) -> tuple[TrainedPart, ...]:
    """Trained parameters by role in the network."""
    rows: dict[str, list[int]] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, MethodLayer):
            role = module.site.role
        elif isinstance(module, AuxiliaryTrainingWrapper):
            role = "head"
        elif isinstance(module, BaseTunerLayer):
            role = name.rpartition(".")[2]
        else:
            continue
        own = [p for p in module.parameters() if p.requires_grad and id(p) not in seen]
        seen.update(id(p) for p in own)
        if own:
            row = rows.setdefault(role, [0, 0])
            row[0], row[1] = row[0] + 1, row[1] + sum(p.numel() for p in own)
    rest = sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in seen)
    if rest:
        rows["shared"] = [1, rest]
    return tuple(TrainedPart(role, modules, size) for role, (modules, size) in rows.items())


def _adapter_parameters(model: PeftModel) -> Iterator[nn.Parameter]:
    """Every parameter that PEFT added for any adapter, trainable or not; copied heads included."""
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper | BaseTunerLayer):
            for name in module.adapter_layer_names:
                yield from attrgetter(name)(module).parameters()
    shared = getattr(model.base_model, "shared_state", None)
    if shared is not None:
        yield from shared.parameters()
