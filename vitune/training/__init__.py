"""Training: `fit`, its settings and the loop. Nothing here can open a test split."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitune.training.observer import Observer as Observer
from vitune.training.train_config import STEPPING as STEPPING
from vitune.training.train_config import TrainConfig as TrainConfig
from vitune.training.train_config import read_yaml as read_yaml

if TYPE_CHECKING:
    from vitune.training.fitting import Trained as Trained
    from vitune.training.fitting import fit as fit


def __getattr__(name: str) -> Any:
    """`fit` and `Trained` need PyTorch; the settings alone, for --help, do not."""
    if name in ("fit", "Trained"):
        value = getattr(importlib.import_module("vitune.training.fitting"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
