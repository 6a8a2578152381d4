"""What a run leaves behind: the adapter with its card, the summary, the report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from vitune.adapters import card_of, save_adapter
from vitune.backbones import Backbone
from vitune.cards import AdapterCard
from vitune.files import write_atomic
from vitune.methods import get_method
from vitune.report import write_report
from vitune.runs import RunFolder
from vitune.training.train_config import TrainConfig


@dataclass(frozen=True)
class Trained:
    """What `fit` returns.

    Args:
        folder: the run folder, None where nothing was to be written.
        model: the PEFT model with the reported weights.
        backbone: what it was trained on; its `model` is the network inside `model`.
        classes: class names in the order of the logits.
        summary: what summary.json holds.
        seen: validation logits (n, c) of the reported weights and labels (n,); None without.
    """

    folder: Path | None
    model: PeftModel
    backbone: Backbone
    classes: tuple[str, ...]
    summary: dict[str, Any]
    seen: tuple[Tensor, Tensor] | None = None


def backbone_arguments(config: TrainConfig) -> dict[str, Any]:
    """The arguments of `load_backbone` that belong to the backbone's identity."""
    values = {"image_size": config.image_size, "checkpoint": config.checkpoint}
    return {key: value for key, value in values.items() if value is not None}


def method_arguments(settings: TrainConfig) -> dict[str, Any]:
    """The method's arguments; from the probe those with which it starts as the identity."""
    method = get_method(settings.method)
    given = settings.method_args
    return method.from_identity(given) if settings.start == "probe" else dict(given)


def card_for(
    model: PeftModel,
    backbone: Backbone,
    settings: TrainConfig,
    classes: tuple[str, ...],
    temperature: float = 1.0,
) -> AdapterCard:
    """The card of the adapter in `model`."""
    arguments = backbone_arguments(settings)
    if "@" in backbone.name:
        arguments.pop("checkpoint", None)  # the backbone's name holds it
    return card_of(
        model,
        backbone,
        method=settings.method,
        method_args=method_arguments(settings),
        backbone_args=arguments,
        classes=classes,
        temperature=temperature,
    )


def write_result(trained: Trained, folder: RunFolder, settings: TrainConfig) -> None:
    """The adapter, the summary and the report, in this order: a summary means a whole run."""
    temperature = trained.summary["calibration"]["temperature"]
    card = card_for(trained.model, trained.backbone, settings, trained.classes, temperature)
    save_adapter(trained.model, folder.adapter, card)
    size = sum(file.stat().st_size for file in folder.adapter.glob("*.safetensors"))
    trained.summary["adapter_bytes"] = size
    trained.summary["fingerprint"] = card.fingerprint
    write_atomic(folder.summary, json.dumps(trained.summary, indent=2) + "\n")
    write_report(folder.path)
