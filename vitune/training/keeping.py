"""The outputs of a run: the adapter with its card, the summary, the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from vitune.adapters import card_of, save_adapter
from vitune.backbones import Backbone
from vitune.cards import AdapterCard
from vitune.methods import get_method
from vitune.report import write_report
from vitune.runs import RunFolder, RunSummary
from vitune.training.train_config import TrainConfig


@dataclass(frozen=True)
class Trained:
    """What `fit` returns.

    Args:
        folder: the run folder, None if nothing was to be written.
        model: the PEFT model with the reported weights.
        backbone: the backbone it was trained on; its `model` is the network inside `model`.
        classes: class names in the order of the logits.
        summary: settings and outcome of the run, as in summary.json.
        seen: validation logits (n, c) of the reported weights, and labels (n,); None without
            validation.
    """

    folder: Path | None
    model: PeftModel
    backbone: Backbone
    classes: tuple[str, ...]
    summary: RunSummary
    seen: tuple[Tensor, Tensor] | None = None


def backbone_arguments(config: TrainConfig) -> dict[str, Any]:
    """The arguments of `load_backbone` that belong to the backbone's identity."""
    values = {"image_size": config.image_size, "checkpoint": config.checkpoint}
    return {key: value for key, value in values.items() if value is not None}


def method_arguments(settings: TrainConfig) -> dict[str, Any]:
    """The method's arguments; for a start at the probe, those of an identity start."""
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
        tokens=settings.tokens,
    )


def write_result(trained: Trained, folder: RunFolder, settings: TrainConfig) -> Trained:
    """Write adapter, summary and report, in this order: a summary means a complete run."""
    calibration = trained.summary.calibration
    temperature = 1.0 if calibration is None else calibration.temperature
    card = card_for(trained.model, trained.backbone, settings, trained.classes, temperature)
    save_adapter(trained.model, folder.adapter, card)
    size = sum(file.stat().st_size for file in folder.adapter.glob("*.safetensors"))
    summary = replace(trained.summary, adapter_bytes=size, fingerprint=card.fingerprint)
    folder.write_summary(summary)
    write_report(folder.path)
    return replace(trained, summary=summary)
