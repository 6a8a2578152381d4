"""Read a local checkpoint without unpickling code, and load it strictly into a network."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vitune.backbones.heads import head_names
from vitune.backbones.wording import one_line
from vitune.errors import BackboneError, listed

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
"""Kinds of checkpoint file that can be read; `.npz` is Google's ViT."""

_WRAPPING_KEYS = ("state_dict", "model_state_dict", "model", "module", "teacher", "student")
_PREFIXES = ("module.", "_orig_mod.")


def check_file(path: Path) -> Path:
    """`path` with ~ expanded.

    Raises:
        BackboneError: no such file, or a kind of file that is not read.
    """
    path = path.expanduser()
    if path.suffix not in SUFFIXES:
        raise BackboneError(
            f"checkpoint: got {str(path)!r}, expected a file ending in {', '.join(SUFFIXES)}."
        )
    if not path.is_file():
        raise BackboneError(
            f"checkpoint: got {str(path)!r}, expected an existing file. Check the path."
        )
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors`, `.pth`, `.pt` or `.bin` file by plain names.

    Wrapping keys (`state_dict`, `model`, ...) and prefixes that all names share (`module.`) are
    removed. Pickled code is never run.

    Raises:
        BackboneError: the file is damaged, holds more than tensors, or holds none.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise BackboneError(
            f"checkpoint: got {str(path)!r}, expected an intact file with only tensors. Reading "
            f"it failed: {one_line(error)}"
        ) from error
    return _plain(_unwrapped(content), path)


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], path: Path, *, keep_head: bool
) -> None:
    """Copy `state` into `model`; every tensor except the head's must exist in the right shape.

    Raises:
        BackboneError: all missing, unexpected and wrongly shaped tensors, in one message.
    """
    heads = tuple(f"{name}." for name in head_names(model))
    own = dict(model.state_dict())
    given = {
        name: value for name, value in state.items() if keep_head or not name.startswith(heads)
    }
    required = {name for name in own if keep_head or not name.startswith(heads)}
    report_differences(
        path,
        type(model).__name__,
        missing=sorted(required - set(given)),
        unexpected=sorted(set(given) - set(own)),
        reshaped=[
            f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
            for name in sorted(required & set(given))
            if given[name].shape != own[name].shape
        ],
    )
    model.load_state_dict(given, strict=False)


def report_differences(
    path: Path, into: str, *, missing: list[str], unexpected: list[str], reshaped: list[str]
) -> None:
    """Refuse a checkpoint whose tensors are not the network's.

    Raises:
        BackboneError: any of the three lists has an entry; the first of each are in the message.
    """
    found = {"missing": missing, "unexpected": unexpected, "wrong shape": reshaped}
    parts = [f"{what}: {listed(names, 5)}" for what, names in found.items() if names]
    if parts:
        raise BackboneError(
            f"checkpoint: got {str(path)!r}, expected the tensors of {into}. {'; '.join(parts)}. "
            f"Use the architecture and image size that the file was made with."
        )


def converted(model: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`state` through the conversion that timm provides for the model, if any.

    It renames the tensors of original releases and resamples position embeddings and relative
    position tables to the image size the model is built for.

    Raises:
        BackboneError: the conversion does not know this checkpoint.
    """
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(state, model))
    except Exception as error:
        raise BackboneError(
            f"checkpoint: got {str(path)!r}, expected the tensors of {type(model).__name__}. "
            f"timm could not convert it: {one_line(error)}"
        ) from error


def num_head_classes(model: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of the head in `state`, or None."""
    weights = [state.get(f"{name}.weight") for name in head_names(model)]
    return next((len(weight) for weight in weights if weight is not None), None)


def _unwrapped(content: Any) -> Any:
    while isinstance(content, dict):
        key = next((key for key in _WRAPPING_KEYS if isinstance(content.get(key), dict)), None)
        if key is None:
            break
        content = content[key]
    return content


def _plain(content: Any, path: Path) -> dict[str, Tensor]:
    """Only the tensors, without the prefixes that all names share."""
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise BackboneError(
            f"checkpoint: got {str(path)!r} holding {type(content).__name__}, "
            f"expected a mapping of names to tensors."
        )
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
