"""Everything that a loaded backbone contributes to a result, as one hash; and its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitune.backbones.backbone import Backbone
from vitune.backbones.bundled import PREFIX as BUNDLED_PREFIX
from vitune.backbones.bundled import WEIGHTS
from vitune.backbones.sources import HF_PREFIX, file_of

_WITHOUT_EFFECT = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Entries of a transformers configuration that depend on where or when it was saved."""


def identity(backbone: Backbone) -> str:
    """64 hex digits: sha256 of every stored tensor, the preprocessing and the configuration.

    Every parameter and buffer counts, bit by bit, including class token, position embeddings, norms
    and the checkpoint's own head. The file's location and format do not count.
    """
    digest = hashlib.sha256()
    for name, value in sorted(backbone.model.state_dict().items()):
        stored = value.detach().cpu().contiguous()
        digest.update(f"{name} {stored.dtype} {tuple(stored.shape)}\n".encode())
        digest.update(stored.reshape(-1).view(torch.uint8).numpy().data)
    described = {
        "preprocessing": asdict(backbone.preprocessing),
        "configuration": dict(_configurations(backbone.model)),
    }
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def local_files(name: str, checkpoint: str | Path | None = None) -> tuple[Path, ...]:
    """The files on this machine that `load_backbone(name, checkpoint=checkpoint)` reads.

    None for a name that a hub resolves: a hub's cache is stored by content.

    Raises:
        BackboneError: two files are named, or the one that is named cannot be used.
    """
    architecture, file = file_of(name, checkpoint)
    if architecture.startswith(BUNDLED_PREFIX):
        stem = architecture.removeprefix(BUNDLED_PREFIX)
        weights = file or WEIGHTS / f"{stem}.safetensors"
        return tuple(path for path in (WEIGHTS / f"{stem}.json", weights) if path.is_file())
    folder = local_folder(architecture)
    if folder is not None:
        return tuple(sorted(path for path in folder.iterdir() if path.is_file()))
    return () if file is None else (file,)


def local_folder(name: str) -> Path | None:
    """The folder of a name like `hf:/path`; None for any other name."""
    location = name.removeprefix(HF_PREFIX)
    is_folder = name.startswith(HF_PREFIX) and location.startswith((".", "/", "~"))
    return Path(location).expanduser() if is_folder else None


def _configurations(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Configurations of transformers modules, the outermost of each branch."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        values = config.to_dict()
        yield "", {key: value for key, value in values.items() if key not in _WITHOUT_EFFECT}
        return
    for name, child in model.named_children():
        for inner, values in _configurations(child):
            yield f"{name}.{inner}", values
