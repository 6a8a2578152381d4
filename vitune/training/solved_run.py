"""A run without steps: features once, the head solved, and the same files as of any run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel

from vitune.adapters import attach, fingerprint_of
from vitune.counts import trained_parts
from vitune.machine import ProcessorUse
from vitune.methods import get_method
from vitune.runs import Calibration, Reported, RunSummary
from vitune.training.accounting import peak_mib, reset_peak
from vitune.training.ingredients import Ingredients, described
from vitune.training.job import Job
from vitune.training.keeping import Trained, write_result
from vitune.training.metrics import append_row
from vitune.training.placement import new_accelerator
from vitune.training.probing import Probe, solve_probe
from vitune.training.record import Resolved, plain_config
from vitune.training.train_config import TrainConfig


def solved_run(job: Job, made: Ingredients) -> Trained:
    """Solve the head on features that are taken once, and write what came of it."""
    settings = job.asked
    if job.record is None:
        settings = _settings(settings, job.process.device.type)
    accelerator = new_accelerator(settings)
    reset_peak(accelerator)
    use = ProcessorUse()
    model, probe, own = _solved_model(job, made, settings)
    facts = described(job, made, settings, model, accelerator, probe)
    method = get_method(settings.method).configure(made.backbone.model, own)
    resolved = job.resolved(
        Resolved(
            method=plain_config(method),
            objective=made.objective,
            augmentation=job.augment(made.backbone),
            preprocessing=made.backbone.preprocessing,
            fingerprint=fingerprint_of(model) if job.folder else "",
            optimiser={"name": "none"},
            threads=torch.get_num_threads(),
            num_processes=accelerator.num_processes,
        )
    )
    with job.kept(settings, resolved, made.images):
        summary = _with_solution(facts, model, probe, job.known.temperature, accelerator, use)
        trained = Trained(job.path, model, made.backbone, made.splits.classes, summary)
        if job.folder is not None and accelerator.is_main_process:
            job.folder.metrics.unlink(missing_ok=True)
            append_row(job.folder.metrics, probe.as_epoch(len(made.train)))
            kept = settings.model_copy(update={"method_args": own})
            trained = write_result(trained, job.folder, kept)
        accelerator.wait_for_everyone()
    return trained


def _settings(asked: TrainConfig, device: str) -> TrainConfig:
    """The settings with nothing left open; those of training by steps mean nothing here."""
    return asked.model_copy(update={"precision": "fp32", "device": device})


def _solved_model(
    job: Job, made: Ingredients, settings: TrainConfig
) -> tuple[PeftModel, Probe, dict[str, Any]]:
    """The model with its solved head, how that was found, and the method's arguments in full."""
    probe = solve_probe(
        made.backbone, made.splits, method=settings.method, method_args=settings.method_args,
        device=job.process.device, seed=settings.seed, budget_mib=settings.memory_budget_mib,
        on_progress=job.observer.prepared,
    )  # fmt: skip
    own = {**settings.method_args, **probe.head.arguments()}
    model = attach(made.backbone, settings.method, own)
    probe.head.place(model)
    return model, probe, own


def _with_solution(
    facts: RunSummary, model: PeftModel, probe: Probe, otherwise: float | None,
    accelerator: Accelerator, use: ProcessorUse,
) -> RunSummary:  # fmt: skip
    """The facts with what came out, beside the weights.

    Args:
        otherwise: the temperature where there is no validation to find one on.
    """
    temperature = probe.sound_temperature
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
