"""Runs that are interrupted, and what stands in their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from vitune.training import Observer

PLAIN: dict[str, Any] = {
    "data": "demo:digits?train=40", "batch_size": 16, "epochs": 2, "image_size": 16,
}  # fmt: skip
"""Half the side of the digits, a quarter of the tokens: such a run takes half as long."""
BRIEF: dict[str, Any] = {**PLAIN, "start": "plain", "lr": 5e-3}
"""Where it does not matter whether a probe is solved first, which takes most of a short run."""


class StopsAfter(Observer):
    """Interrupts the run after an epoch, as Ctrl-C would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def epoch_ended(self, row: dict[str, Any]) -> None:
        if row["epoch"] == self.epoch:
            raise KeyboardInterrupt


class StopsAtOnce(Observer):
    """Interrupts the run before its first step."""

    def started(self, loop: Any) -> None:
        raise KeyboardInterrupt


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def recorded(run: Path) -> dict[str, Any]:
    values = yaml.safe_load((run / "config.yaml").read_text())
    assert isinstance(values, dict)
    return values
