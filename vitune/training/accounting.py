"""What a run records about itself: the facts before the first step, the outcome after the last."""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from vitune.backbones import Backbone
from vitune.counts import ParameterCounts, trained_parts
from vitune.data import HeldOut, Remark, Split, Splits
from vitune.environment import installed_versions
from vitune.machine import ProcessorUse
from vitune.methods import get_method
from vitune.report import counted
from vitune.runs import Oddity, Reported, RunSummary
from vitune.training.lookalikes import lookalike_remark
from vitune.training.loop import Loop
from vitune.training.private import privacy_spent
from vitune.training.probing import Probe
from vitune.training.train_config import TrainConfig

CLEAR_REFS = Path("/proc/self/clear_refs")


def facts_of(
    settings: TrainConfig,
    backbone: Backbone,
    counts: ParameterCounts,
    splits: Splits,
    accelerator: Accelerator,
    notice: str | None,
    probe: Probe | None = None,
) -> RunSummary:
    """What is about to be trained; every result is still None.

    Args:
        settings: with every default filled in.
        probe: the run's, which compared validation images with training images.
    """
    assert splits.train is not None
    alike = None if probe is None else lookalike_remark(*probe.lookalikes)
    remarks = [*splits.remarks, *([alike] if alike else [])]
    facts = RunSummary(
        method=settings.method,
        backbone=backbone.name,
        num_total=counts.total,
        data=settings.data,
        num_train=len(splits.train),
        num_val=0 if splits.val is None else len(splits.val),
        val_groups=_num_groups(splits.val),
        num_classes=len(splits.classes),
        held_out=_describe(splits.held_out),
        batch_size=settings.batch_size,
        skipped_images=len(splits.skipped),
        remarks=tuple(_oddity(remark) for remark in remarks),
        lr=settings.lr,
        head_lr=settings.head_lr,
        start=settings.start,
        weight_decay=settings.weight_decay,
        precision=settings.precision,
        speed=settings.speed,
        tokens=settings.tokens,
        device=_device_name(accelerator),
        num_processes=accelerator.num_processes,
        seed=settings.seed,
        versions=installed_versions(),
        notice=notice,
    )
    return with_method(facts, settings.method, counts)


def with_method(facts: RunSummary, name: str, counts: ParameterCounts) -> RunSummary:
    """The facts with what depends on the method whose weights the run holds."""
    method = get_method(name)
    return replace(
        facts,
        method=method.name,
        method_title=method.title,
        source=method.source,
        mergeable=method.mergeable,
        num_trainable=counts.trainable,
        num_trainable_without_head=counts.without_head,
        num_head=counts.head,
    )


def with_outcome(
    facts: RunSummary, loop: Loop, accelerator: Accelerator, use: ProcessorUse
) -> RunSummary:
    """The facts with the outcome, apart from the weights."""
    config, progress = loop.config, loop.progress
    return replace(
        facts,
        reported=Reported(
            config.select, loop.reported_epoch, loop.reported_accuracy, loop.kept.is_averaged
        ),
        share=loop.share,
        best_epoch=progress.best_epoch,
        epochs=progress.epoch,
        steps=progress.step,
        seconds=progress.seconds,
        cpu_seconds=progress.cpu_seconds,
        cores_of_others=use.others,
        peak_mib=peak_mib(accelerator),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        status="finished" if progress.epoch == config.epochs else "stopped",
        trained_parts=trained_parts(loop.model),
        privacy=privacy_spent(loop.private),
    )


def reset_peak(accelerator: Accelerator) -> None:
    """Count peaks from here, so that runs in one process do not inherit each other's."""
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    elif CLEAR_REFS.exists():
        # Linux: "5" sets VmHWM, the peak of resident memory, back to what is resident now (man 5
        # proc). Other digits would clear page flags instead.
        CLEAR_REFS.write_text("5")


def _oddity(remark: Remark) -> Oddity:
    told = remark.as_dict()
    return Oddity(**{**told, "names": tuple(told["names"])})


def _num_groups(val: Split | None) -> int | None:
    """Of how many groups the validation images are; None if groups are unknown."""
    return None if val is None or val.groups is None else len(np.unique(val.groups))


def _describe(held_out: HeldOut | None) -> str | None:
    """How validation was split from training, in words; None if the data has its own split."""
    if held_out is None:
        return None
    images = counted(held_out.num_images, "image")
    if held_out.num_groups is not None:
        images += f" in {counted(held_out.num_groups, 'whole group')}"
    return f"{images} of training, stratified, seed {held_out.seed}"


def _device_name(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name(accelerator.device)
    return f"cpu ({counted(torch.get_num_threads(), 'thread')})"


def peak_mib(accelerator: Accelerator) -> float:
    """Peak memory: the CUDA allocator's, or this process's resident size on a CPU; MiB."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device) / 2**20
    if CLEAR_REFS.exists():
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20
