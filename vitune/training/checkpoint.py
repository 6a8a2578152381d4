"""What `--resume` continues from: trainable tensors, optimiser state and counters, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from vitune.errors import AdapterError
from vitune.files import atomic_folder, recover_folder

TENSORS, STATE = "tensors.safetensors", "state.json"


@dataclass
class Progress:
    """Where a run stands after a whole epoch.

    Args:
        epoch: epochs done.
        step: optimiser steps done.
        seconds: training time so far.
        val_accuracy: of the last epoch, in [0, 1]; None without a validation split.
        best_epoch: epoch of the best validation accuracy; 0 while there is none.
        best_accuracy: that accuracy, in [0, 1].
        stale_epochs: epochs since then.
        watched: best and latest epoch by calibrated validation loss.
        accuracies: on validation, by epoch; 0 is before the first step.
        scaler: state of the fp16 loss scaler.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    val_accuracy: float | None = None
    best_epoch: int = 0
    best_accuracy: float = -1.0
    stale_epochs: int = 0
    num_averaged: int = 0
    watched: list[int] = field(default_factory=list)
    accuracies: dict[str, float] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    progress: Progress,
    parameters: Mapping[str, nn.Parameter],
    optimiser: Optimizer,
    extra: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Write all of it aside, then rename: a kill or a full disk leaves the previous one whole.

    Args:
        parameters: trainable parameters by name.
        extra: further named tensors by group ("average", "best", "buffers").
    """
    tensors = {f"parameter/{name}": value.detach() for name, value in parameters.items()}
    for name, value in parameters.items():
        for key, entry in optimiser.state.get(value, {}).items():
            tensors[f"optimiser/{key}/{name}"] = torch.as_tensor(entry).detach()
    for group, values in extra.items():
        tensors.update({f"{group}/{name}": value.detach() for name, value in values.items()})
    with atomic_folder(folder) as aside:
        stored = {name: value.contiguous().cpu().clone() for name, value in tensors.items()}
        save_file(stored, aside / TENSORS)
        (aside / STATE).write_text(json.dumps(vars(progress), indent=2))


def has_checkpoint(folder: Path) -> bool:
    """Whether `folder` holds a whole checkpoint."""
    recover_folder(folder)
    return (folder / STATE).is_file() and (folder / TENSORS).is_file()


def load_checkpoint(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimiser: Optimizer
) -> tuple[Progress, dict[str, dict[str, Tensor]]]:
    """Put parameters and optimiser back; returns the progress and the extra groups.

    Raises:
        AdapterError: the checkpoint is damaged or belongs to another configuration.
    """
    try:
        tensors = load_file(folder / TENSORS)
        progress = Progress(**json.loads((folder / STATE).read_text()))
    except (OSError, SafetensorError, json.JSONDecodeError, TypeError) as error:
        raise AdapterError(f"checkpoint {str(folder)!r}: got a damaged file ({error}).") from error
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = value
    stored = groups.pop("parameter", {})
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    if shapes != {name: tuple(value.shape) for name, value in stored.items()}:
        raise AdapterError(
            f"checkpoint {str(folder)!r}: got other trained tensors than this configuration has, "
            "expected the same ones. Resume with the run's own settings."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])
    for key, value in groups.pop("optimiser", {}).items():
        entry, _, name = key.partition("/")
        parameter = parameters[name]
        optimiser.state[parameter][entry] = value.to(parameter.device)
    return progress, groups
