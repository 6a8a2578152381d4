"""What determines a run's result, and what is only recorded with it.

A cell's address is a hash of everything that the result is a function of: the stage, the images of
every split by content and order, every weight of the backbone, its preprocessing and
configuration, all settings, the recipe of a protocol. If one of them changes, it is a different
cell: it is run, and the old result is no longer shown. A file may be moved, renamed or saved in
another format without any cell being run again.

Versions of vitune and of the libraries, the device and the number format that `precision: auto`
resolved to are not part of the address. Accuracy hardly depends on them, and an update must not
throw a week of results away. They are recorded in every result instead; a table says if its runs
differ in them, and `--rerun-changed` runs such cells again. A release of vitune that changes what a
setting means raises REVISION, and then every cell is a new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vitune.backbones import local_folder

REVISION = 1
"""Raise it with any change of vitune after which equal settings train a different network."""

WITHOUT_EFFECT = (
    "data",
    "checkpoint",
    "device",
    "memory_budget_mib",
    "checkpoint_every_epochs",
    "snapshot_every_epochs",
    "skip_bad_images",
    "val_fraction",
)
"""Fields of TrainConfig that do not affect results because splits and weights are known by hash."""

ALWAYS = ("backbone", "method", "epochs", "seed", "lr", "weight_decay", "refit")
"""Fields that are part of every address."""

AS_IF_ABSENT: dict[str, Any] = {
    "image_size": None,
    "method_args": {},
    "batch_size": 32,
    "warmup_epochs": None,
    "min_lr": 1e-8,
    "accumulation_steps": 1,
    "clip_grad": None,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "drop_path": 0.0,
    "augment": "none",
    "ema": None,
    "objective": "cross_entropy",
    "objective_args": {},
    "select": "last",
    "patience": None,
    "drop_last": False,
    "optimiser": "adamw",
    "momentum": 0.9,
    "decay_rule": "vitune",
    "warmup_lr": 1e-7,
    "random_erasing": 0.0,
    "ema_ramp": True,
    "head_init": "zero",
    "start": "plain",
    "head_lr": None,
    "choose_best": None,
    "crop_mode": None,
    "crop_pct": None,
    "interpolation": None,
    "pixel_stats": None,
    "precision": "auto",
    "checkpointing": False,
    "lean": True,
    "speed": None,
    "tokens": "keep",
    "groups": None,
    "dp_epsilon": None,
    "dp_delta": 1e-5,
    "dp_clip": 1.0,
}
"""A field with this value is not part of the address, so that a field may be added to TrainConfig
without changing every address. A new field belongs here with the value that keeps runs as they were
before the field existed; if its default changes later, the entry stays."""


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration that affect a result, without neutral values."""
    return {
        name: _without_place(value) if name == "backbone" else value
        for name, value in config.items()
        if name not in WITHOUT_EFFECT and (name not in AS_IF_ABSENT or value != AS_IF_ABSENT[name])
    }


def address_of(**parts: Any) -> str:
    """32 hex digits of sha256 over the parts and REVISION."""
    text = json.dumps({"revision": REVISION, **parts}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _without_place(backbone: str) -> str:
    """A backbone's name without the path of its file or folder, whose content is hashed."""
    if local_folder(backbone) is not None:
        return "hf:"
    return backbone if backbone.startswith("hf:") else backbone.partition("@")[0]
