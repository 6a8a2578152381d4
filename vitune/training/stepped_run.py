"""A run by steps, from its ingredients to its result: probe, settings, adapter, loop."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel

from vitune.adapters import fingerprint_of, inject, save_adapter
from vitune.fewer_tokens import reduce_tokens
from vitune.machine import ProcessorUse
from vitune.methods import get_method
from vitune.report import check_readable
from vitune.runs import RunSummary
from vitune.training.accounting import reset_peak, with_outcome
from vitune.training.augmenting import with_augmentation
from vitune.training.ingredients import Ingredients, described
from vitune.training.job import Job
from vitune.training.keeping import Trained, card_for, method_arguments, write_result
from vitune.training.loop import Loop, Recipe
from vitune.training.placement import new_accelerator
from vitune.training.precision import BF16_WIDTH, network_width, resolve_precision
from vitune.training.probe_instead import probe_instead
from vitune.training.probing import Probe
from vitune.training.record import Resolved, plain_config, plain_optimiser, set_optimiser
from vitune.training.resume_point import has_checkpoint
from vitune.training.resuming import require_checkpoint, require_own_checkpoint
from vitune.training.settling import filled_in, with_fitting_batch
from vitune.training.speed_presets import FASTER
from vitune.training.starting import (
    keep_probe,
    kept_probe,
    staged_probe,
    starting_probe,
    with_start,
)
from vitune.training.train_config import TrainConfig
from vitune.training.verdict import calibration, compare


def stepped_run(job: Job, made: Ingredients) -> Trained:
    """Solve the probe, attach the adapter, train it and write what came of it."""
    probe, staged = _probe(job, made)
    settings = _settings(job, made, probe)
    model, method = _adapted(job, made, settings)
    if settings.start == "probe" and probe is not None and len(probe.head.bias):
        probe.head.place(model)
    accelerator = new_accelerator(settings)
    facts = described(job, made, settings, model, accelerator, probe)
    fingerprint = fingerprint_of(model) if job.folder else ""
    loop = _loop(job, made, settings, model, accelerator)
    resolved = job.resolved(
        Resolved(
            method=method,
            objective=made.objective,
            augmentation=loop.inputs.augment,
            preprocessing=made.backbone.preprocessing,
            fingerprint=fingerprint,
            optimiser=plain_optimiser(loop.raw_optimiser),
            threads=torch.get_num_threads(),
            num_processes=accelerator.num_processes,
            plugin=dict(get_method(settings.method).plugin),
        )
    )
    run = job.identity(settings, resolved, made.images)
    if job.record is not None:
        _restore(job, loop, resolved, run)
    loop.progress.run = run
    with job.kept(settings, resolved, made.images):
        if job.folder is not None and staged is not None:
            keep_probe(staged, job.folder)
        trained = _trained(job, made, settings, loop, facts, probe)
        accelerator.wait_for_everyone()
    return trained


def _probe(job: Job, made: Ingredients) -> tuple[Probe | None, Path | None]:
    """The solved probe that the run starts from or is compared with, and where it is staged.

    The run folder does not exist yet, and the backbone must be bare when the probe is written.
    """
    if job.record is not None and job.folder is not None:
        require_checkpoint(job.folder)
        has_begun = has_checkpoint(job.folder.checkpoint)
        has_probe = job.asked.start == "probe" or bool(job.asked.choose_best)
        if has_begun or job.asked.start != "probe":
            return kept_probe(job.folder, is_needed=has_begun and has_probe), None
    probe = starting_probe(
        job.asked, made.backbone, made.splits, job.process.device, job.observer,
        given=job.known.probe,
    )  # fmt: skip
    if probe is None or job.folder is None or not job.process.is_main_process:
        return probe, None
    staged = Path(job.held.enter_context(tempfile.TemporaryDirectory())) / "probe"
    staged_probe(probe, job.asked, staged, made.backbone, made.splits.classes)
    return probe, staged


def _settings(job: Job, made: Ingredients, probe: Probe | None) -> TrainConfig:
    """The settings with nothing left open."""
    asked = job.asked
    if job.record is not None:
        return asked
    model, device = made.backbone.model, job.process.device.type
    width = BF16_WIDTH if asked.speed in FASTER else network_width(model)
    precision = resolve_precision(asked.precision, device, width)
    num_images = len(made.train)
    asked = with_fitting_batch(asked, num_images)
    asked = with_start(asked, model, num_images, job.process.num_processes, probe)
    asked = with_augmentation(asked, made.backbone, made.splits, probe, device)
    return filled_in(asked, get_method(asked.method), precision, device)


def _adapted(
    job: Job, made: Ingredients, settings: TrainConfig
) -> tuple[PeftModel, dict[str, Any]]:
    """The model with its adapter, and every argument of the method."""
    # Again: how many numbers were drawn meanwhile depends on the library that built the
    # network, and an adapter's start should depend on the seed alone.
    torch.manual_seed(settings.seed)
    network = made.backbone.model
    if job.record is not None:
        config = job.record.resolved.new_peft_config()
    else:
        config = get_method(settings.method).configure(network, method_arguments(settings))
    arguments = plain_config(config)  # before PEFT sees it: it fills in what it finds
    model = inject(network, config)
    reduce_tokens(model, settings.token_plan)
    return model, arguments


def _loop(
    job: Job, made: Ingredients, settings: TrainConfig, model: PeftModel, accelerator: Accelerator
) -> Loop:
    return Loop(
        model,
        made.train,
        made.splits.val,
        made.backbone.preprocessing,
        settings.model_copy(update={"objective_args": made.objective}),
        Recipe(settings.lr or 0.0, settings.weight_decay or 0.0, settings.head_lr),
        accelerator,
        job.observer,
        metrics_path=None if job.folder is None else job.folder.metrics,
        checkpoint_path=None if job.folder is None else job.folder.checkpoint,
        keep=partial(_snapshot, job, made, settings, model),
        augment=job.augment(made.backbone, settings),
        has_start=settings.start == "probe",
        known_share=job.known.share,
    )


def _snapshot(
    job: Job, made: Ingredients, settings: TrainConfig, model: PeftModel, epoch: int
) -> None:
    """Keep the adapter as it is after so many epochs."""
    if job.folder is not None:
        card = card_for(model, made.backbone, settings, made.splits.classes)
        save_adapter(model, job.folder.snapshot(epoch), card)


def _restore(job: Job, loop: Loop, resolved: Resolved, run: str) -> None:
    """Go to where the run stopped; damage is refused before the folder is written to."""
    set_optimiser(loop.raw_optimiser, resolved.optimiser)
    loop.restore()
    if job.folder is not None:
        require_own_checkpoint(job.folder, loop.progress.run, run)
        check_readable(job.folder.path)


def _trained(
    job: Job,
    made: Ingredients,
    settings: TrainConfig,
    loop: Loop,
    facts: RunSummary,
    probe: Probe | None,
) -> Trained:
    """Train, score, and write the result to the run folder."""
    accelerator = loop.accelerator
    reset_peak(accelerator)
    use = ProcessorUse()
    loop.run()
    seen = loop.reported_logits()
    # For its side effect: accelerate has put autocast into the model's own `forward`, and
    # unwrapping takes it out again. The model that it returns is the one we have.
    accelerator.unwrap_model(loop.wrapped, keep_fp32_wrapper=False)
    # The probe's weights are not the probe where inference merges tokens.
    share = None if settings.token_plan.in_inference else loop.share
    verdict = None if probe is None or seen is None else compare(probe, *seen, share)
    summary = replace(
        with_outcome(facts, loop, accelerator, use),
        calibration=calibration(seen, job.known.temperature, probe),
        probe=None if probe is None else probe.facts(),
        verdict=verdict,
    )
    trained = Trained(job.path, loop.model, made.backbone, made.splits.classes, summary, seen)
    if job.folder is not None and accelerator.is_main_process:
        trained = write_result(trained, job.folder, settings)
    if settings.choose_best and probe and verdict and verdict.probe_is_better:
        trained = probe_instead(trained, settings, probe, made.splits.val, job.folder, accelerator)
    return trained
