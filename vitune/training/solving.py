"""A run without gradient steps: features once, the head solved, results reported as for any run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel

from vitune.adapters import attach
from vitune.backbones import Backbone
from vitune.counts import trained_parts
from vitune.data import Splits
from vitune.machine import ProcessorUse
from vitune.runs import Calibration, Reported, RunSummary
from vitune.training.accounting import peak_mib
from vitune.training.observer import Observer
from vitune.training.probing import Probe, solve_probe
from vitune.training.train_config import TrainConfig


def solved_settings(asked: TrainConfig, device: str) -> TrainConfig:
    """The settings with nothing left open; those of gradient steps mean nothing here."""
    return asked.model_copy(update={"precision": "fp32", "device": device})


def solved_model(
    settings: TrainConfig,
    backbone: Backbone,
    splits: Splits,
    device: torch.device,
    observer: Observer,
) -> tuple[PeftModel, Probe, dict[str, Any]]:
    """The model with its solved head, how it was found, and the method's arguments in full."""
    probe = solve_probe(
        backbone, splits, method=settings.method, method_args=settings.method_args,
        device=device, seed=settings.seed, budget_mib=settings.memory_budget_mib,
        on_progress=observer.prepared,
    )  # fmt: skip
    own = {**settings.method_args, **probe.head.arguments()}
    model = attach(backbone, settings.method, own)
    probe.head.place(model)
    return model, probe, own


def with_solution(
    facts: RunSummary, model: PeftModel, probe: Probe, otherwise: float | None,
    accelerator: Accelerator, use: ProcessorUse,
) -> RunSummary:  # fmt: skip
    """The facts with the outcome, apart from the weights.

    Args:
        otherwise: the temperature if there is no validation to fit one on.
    """
    temperature = probe.temperature
    if probe.val_loss is None and otherwise is not None:
        temperature = otherwise
    return replace(
        facts,
        reported=Reported("solved", 1, probe.val_accuracy),
        solved=probe.facts(),
        calibration=Calibration(temperature),
        best_epoch=1,
        epochs=1,
        steps=0,
        seconds=probe.seconds,
        cpu_seconds=use.own_seconds,
        cores_of_others=use.others,
        peak_mib=peak_mib(accelerator),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        status="finished",
        trained_parts=trained_parts(model),
    )
