"""What `--resume` continues from: trainable tensors, optimiser state and counters, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.optim import Optimizer

from vitune.errors import AdapterError, explain, one_line
from vitune.files import atomic_folder, file_sha256, recover_folder
from vitune.tensors import read_tensors, write_tensors

TENSORS, STATE = "tensors.safetensors", "state.json"
CHECKSUM = "sha256"
"""The entry of state.json that ties it to its tensors and reveals a flipped bit."""

Count = Annotated[int, Field(ge=0)]


@dataclass(config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Progress:
    """The state of a run after a complete epoch.

    Args:
        epoch: epochs done.
        step: optimiser steps done.
        seconds: training time so far.
        cpu_seconds: processor time of this process, which other programs do not lengthen.
        val_accuracy: of the last epoch, in [0, 1]; None without a validation split.
        best_epoch: epoch of the best validation accuracy; 0 if there is none yet.
        best_accuracy: that accuracy, in [0, 1].
        stale_epochs: epochs since then.
        watched: best and latest epoch by calibrated validation loss.
        accuracies: on validation, by epoch; 0 is before the first step.
        scaler: state of the fp16 loss scaler.
        accountant: the budget a private run has spent: (noise multiplier, sampling rate, steps)
            each.
        run: `identity` in config.yaml of the run; empty in checkpoints of older releases.
    """

    epoch: Count = 0
    step: Count = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    val_accuracy: float | None = None
    best_epoch: Count = 0
    best_accuracy: float = -1.0
    stale_epochs: Count = 0
    num_averaged: Count = 0
    watched: list[int] = field(default_factory=list)
    accuracies: dict[str, float] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    accountant: list[tuple[float, float, int]] = field(default_factory=list)
    run: str = ""


def save_checkpoint(
    folder: Path,
    progress: Progress,
    parameters: Mapping[str, nn.Parameter],
    optimiser: Optimizer,
    extra: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Write everything aside, then rename: a kill or a full disk leaves the previous one intact.

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
        # safetensors refuses tensors that share memory, as views of one parameter do.
        stored = {name: value.contiguous().cpu().clone() for name, value in tensors.items()}
        write_tensors(aside / TENSORS, stored)
        values = asdict(progress)
        values[CHECKSUM] = _checksum(values, aside)
        (aside / STATE).write_text(json.dumps(values, indent=2))


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint; a run without one starts from the beginning.

    Raises:
        AdapterError: there is an incomplete or damaged checkpoint.
    """
    recover_folder(folder)
    if not os.path.lexists(folder):
        return False
    for name in (STATE, TENSORS):
        if not (folder / name).is_file():
            raise _damaged(folder, f"no {name} in it")
    return True


def read_progress(folder: Path) -> Progress | None:
    """The state of the run; None if it has no checkpoint yet.

    Raises:
        AdapterError: its file is damaged.
    """
    return _read_state(folder)[0] if has_checkpoint(folder) else None


def load_checkpoint(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimiser: Optimizer
) -> tuple[Progress, dict[str, dict[str, Tensor]]]:
    """Restore parameters and optimiser; return the progress and the extra groups.

    Raises:
        AdapterError: the checkpoint is damaged or belongs to another configuration.
    """
    progress, values = _read_state(folder)
    checksum = values.pop(CHECKSUM, None)
    if _checksum(values, folder) != checksum:  # as read: an older release has fewer entries
        raise _damaged(folder, f"{TENSORS} or {STATE} has changed since it was written")
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in read_tensors(folder / TENSORS).items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = value
    stored = groups.pop("parameter", {})
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    if shapes != {name: tuple(value.shape) for name, value in stored.items()}:
        raise AdapterError(
            f"checkpoint {str(folder)!r}: got trained tensors that do not match this "
            "configuration, expected the same ones. Resume with the release that started the run."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])
    for key, value in groups.pop("optimiser", {}).items():
        entry, _, name = key.partition("/")
        parameter = parameters[name]
        optimiser.state[parameter][entry] = value.to(parameter.device)
    return progress, groups


def _read_state(folder: Path) -> tuple[Progress, dict[str, Any]]:
    """The progress, and the entries of its file with their checksum."""
    try:
        values = json.loads((folder / STATE).read_text())
        if not isinstance(values, dict):
            raise ValueError(f"{type(values).__name__} instead of a mapping")
        own = {name: value for name, value in values.items() if name != CHECKSUM}
        return TypeAdapter(Progress).validate_python(own), values
    except ValidationError as error:
        raise _damaged(folder, f"{STATE}: {explain(error)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, f"{STATE}: {one_line(error)}") from None


def _checksum(values: Mapping[str, Any], folder: Path) -> str:
    """sha256 over the progress and the tensors' file."""
    text = json.dumps(values, sort_keys=True) + file_sha256(folder / TENSORS)
    return hashlib.sha256(text.encode()).hexdigest()


def _damaged(folder: Path, what: str) -> AdapterError:
    return AdapterError(
        f"checkpoint {str(folder)!r}: got a damaged file ({what}), expected the one that "
        "training wrote. Replace it with an intact copy, or start a new run."
    )
