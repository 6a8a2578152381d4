"""`fit`: from a configuration to a finished run folder."""

from __future__ import annotations

import json
import math
import resource
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from peft import PeftModel
from torch import Tensor, nn

from vitune.adapters import (
    AdapterCard,
    attach,
    card_of,
    installed_versions,
    save_adapter,
)
from vitune.backbones import (
    Backbone,
    load_backbone,
    notice_of,
    preferred_backbone,
    start_heads,
)
from vitune.counts import ParameterCounts, count_parameters, trained_parts
from vitune.data import HeldOut, Splits, augmentation, load_splits, open_source
from vitune.errors import DataError, VituneError, nearest
from vitune.files import write_atomic
from vitune.methods import CAUTIOUS, get_method
from vitune.report import write_report
from vitune.runs import RunFolder
from vitune.training.config import TrainConfig
from vitune.training.loop import Loop, Recipe
from vitune.training.observer import Observer
from vitune.training.precision import resolve_precision
from vitune.training.probing import Probe, require_no_steps, solve_probe
from vitune.training.rates import (
    HEAD_FACTOR,
    demand_of,
    falls_short,
    plain_rate,
    rate_of,
    shape_of,
)
from vitune.training.scarce import lone_classes, scarcity_notice
from vitune.training.starting import METHOD as PROBE_METHOD
from vitune.training.starting import probe_alone, starting_probe
from vitune.training.verdict import calibration, compare

SETTLED_BY_RESUME = ("epochs",)
CLEAR_REFS = Path("/proc/self/clear_refs")


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


@dataclass(frozen=True)
class _Known:
    """What a caller knows of a run beforehand, see `fit`."""

    probe: Probe | None
    temperature: float | None
    notice: str
    scarcity: str = ""


def fit(
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    splits: Splits | None = None,
    probe: Probe | None = None,
    temperature: float | None = None,
    **settings: Any,
) -> Trained:
    """Train one method on one data source and keep the result in a run folder.

    Only the training and validation splits are ever decoded here; a test split is opened by
    `vitune evaluate` alone.

    Args:
        config: the settings; or give them as keywords, e.g. `fit(data="photos/", epochs=20)`.
        out: a new folder for the run; None writes nothing.
        resume: continue the run in `out` from its checkpoint, with the settings it was begun with.
        observer: is told about progress.
        splits: images of `config.data` that are decoded already, so that many runs share them;
            `train` is trained on and `val` watched, whatever the config says of hold-out or refit.
        probe: solved on these splits already, so that many runs share it.
        temperature: to store with the run where there are no validation images to find one on.

    Raises:
        VituneError: settings, data or backbone that cannot be used; the text names the remedy.
        TrainingError: the loss became non-finite; the last checkpoint is kept.
    """
    config = _settle(config, settings, out if resume else None)
    config, notice = with_backbone(config)
    process = PartialState(cpu=_on_cpu(config))
    observer = (observer or Observer()) if process.is_main_process else Observer()
    folder = _open_folder(out, resume, process)
    try:
        return _fit(config, folder, process, observer, splits, _Known(probe, temperature, notice))
    except VituneError:
        if folder is not None and not folder.config.is_file():
            shutil.rmtree(folder.probe, ignore_errors=True)
        if folder is not None and folder.path.is_dir() and not any(folder.path.iterdir()):
            folder.path.rmdir()
        raise


def with_backbone(config: TrainConfig) -> tuple[TrainConfig, str]:
    """The settings with the backbone they leave open, and what the user should know of it."""
    given = config.model_fields_set
    if not given & {"backbone", "checkpoint", "image_size"}:
        config = config.model_copy(update={"backbone": preferred_backbone()})
    name = config.backbone if config.checkpoint is None else f"{config.backbone}@file"
    return config, notice_of(name, was_named="backbone" in given)


def _on_cpu(config: TrainConfig) -> bool:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise VituneError("--device: got 'cuda', expected a GPU that PyTorch can see. Use cpu.")
    return config.device == "cpu" or not torch.cuda.is_available()


def _open_folder(out: str | Path | None, resume: bool, process: PartialState) -> RunFolder | None:
    """The run folder; only the main process creates it, or refuses to."""
    if out is None:
        return None
    if process.is_main_process:
        return RunFolder.create(out, resume=resume)
    return RunFolder(Path(out))


def prepare_data(
    config: TrainConfig, backbone: Backbone, observer: Observer, cache_dir: Path | None = None
) -> Splits:
    """Training and validation images of `config.data` for `backbone`.

    Raises:
        DataError: what `load_splits` refuses.
    """
    size = backbone.preprocessing.image_size
    lone = lone_classes(config)
    splits = load_splits(
        config.data,
        backbone.preprocessing,
        seed=config.seed,
        val_fraction=0 if lone.are_all else config.val_fraction,
        lone_classes=bool(lone.names),
        skip_bad_images=config.skip_bad_images,
        memory_budget_mib=config.memory_budget_mib,
        cache_dir=cache_dir,
        include=("trainval",) if config.refit else ("train", "val"),
        train_size=augmentation(config.augment, size).train_size(size),
        on_progress=lambda done, total: observer.prepared("images", done, total),
    )
    train = splits.trainval if config.refit else splits.train
    assert train is not None
    return replace(splits, train=train)


def _sealed(splits: Splits) -> Splits:
    """The splits, among which there must be training images and no test split."""
    if splits.test is not None or splits.train is None:
        raise DataError(
            "splits: got a test split or no training split, expected train and perhaps val: a test "
            "split is opened after training."
        )
    return splits


def _require_rate(config: TrainConfig) -> None:
    if config.optimiser == "sgd" and config.lr is None:
        raise VituneError(
            "--optimiser: got 'sgd' without a rate, expected --lr beside it: the methods' own "
            "rates are AdamW's."
        )


def _require_batch(config: TrainConfig, num_images: int) -> None:
    if config.batch_size > num_images:
        raise DataError(
            f"--batch-size: got {config.batch_size}, expected at most the {num_images} "
            "training images."
        )


def _fit(
    config: TrainConfig,
    folder: RunFolder | None,
    process: PartialState,
    observer: Observer,
    given: Splits | None,
    known: _Known,
) -> Trained:
    method = get_method(config.method)
    require_no_steps(config) if method.solved else _require_rate(config)
    classes = open_source(config.data).classes if given is None else given.classes
    torch.manual_seed(config.seed)
    backbone = load_backbone(
        config.backbone,
        num_classes=len(classes),
        drop_path=config.drop_path,
        **backbone_arguments(config),
    )
    backbone = replace(backbone, preprocessing=config.prepared(backbone.preprocessing))
    if config.head_init != "zero":
        start_heads(backbone.model, config.head_init)
    if config.checkpointing:
        _checkpoint_activations(backbone)
    with process.main_process_first():
        splits = prepare_data(config, backbone, observer) if given is None else _sealed(given)
    assert splits.train is not None
    if given is None:
        notice = scarcity_notice(lone_classes(config), solved=method.solved)
        known = replace(known, scarcity=notice)
    if method.solved:
        return _fit_solved(config, folder, process, observer, backbone, splits, known)
    if "batch_size" not in config.model_fields_set:
        smaller = min(config.batch_size, len(splits.train))
        config = config.model_copy(update={"batch_size": smaller})
    _require_batch(config, len(splits.train))
    probe = starting_probe(
        config, folder, backbone, splits, process.device, observer,
        is_main=process.is_main_process, given=known.probe,
    )  # fmt: skip
    from_probe = probe is not None and (
        config.start == "probe"
        or not falls_short(probe.head.chosen.get(CAUTIOUS), len(splits.train))
    )
    if from_probe:
        own = method.from_identity(config.method_args)
        config = config.model_copy(update={"method_args": own})
    torch.manual_seed(config.seed)
    model = attach(backbone, config.method, config.method_args)
    if from_probe and probe is not None and len(probe.head.bias):
        probe.head.place(model)
    counts = count_parameters(model)
    recipe = _recipe(config, backbone, len(splits.train), process.num_processes,
                     probe if from_probe else None)  # fmt: skip
    precision = resolve_precision(config.precision, process.device.type, _width(model))
    accelerator = _new_accelerator(config, precision)
    facts = _facts(config, backbone, counts, splits, recipe, precision, accelerator)
    facts |= {"backbone_notice": known.notice, "scarcity_notice": known.scarcity}
    observer.described(facts)
    if folder is not None and accelerator.is_main_process:
        write_atomic(folder.config, config.to_yaml())
    loop = Loop(
        model,
        splits.train,
        splits.val,
        backbone.preprocessing,
        config,
        recipe,
        accelerator,
        observer,
        metrics_path=None if folder is None else folder.metrics,
        checkpoint_path=None if folder is None else folder.checkpoint,
        keep=(
            None if folder is None
            else partial(_snapshot, model, backbone, config, folder, splits.classes)
        ),
        has_start=from_probe,
    )
    _reset_peak(accelerator)
    loop.run()
    seen = loop.reported_logits()
    accelerator.unwrap_model(loop.wrapped, keep_fp32_wrapper=False)
    summary = {
        **facts,
        **_outcome(loop, accelerator),
        "trained_parts": trained_parts(model),
        "calibration": calibration(seen, known.temperature),
        "probe": None if probe is None else probe.facts(),
    }
    verdict = None if probe is None or seen is None else compare(probe, *seen)
    summary["verdict"] = None if verdict is None else verdict.as_dict()
    trained = Trained(
        None if folder is None else folder.path, model, backbone, splits.classes, summary, seen
    )
    if folder is not None and accelerator.is_main_process:
        _write(trained, folder, config)
    if config.choose_best and probe and verdict and verdict.probe_is_better:
        trained = _chosen_probe(trained, folder, config, probe, accelerator)
    accelerator.wait_for_everyone()
    return trained


def _chosen_probe(
    trained: Trained, folder: RunFolder | None, config: TrainConfig, probe: Probe,
    accelerator: Accelerator,
) -> Trained:  # fmt: skip
    """The probe in the place of the adapted network, which is kept in RUN/adapted."""
    model = probe_alone(config, folder, probe, len(trained.classes)).to(accelerator.device)
    counts = count_parameters(model)
    method = get_method(PROBE_METHOD)
    summary = {
        **trained.summary,
        "chosen": "probe",
        "asked": config.method,
        "method": method.name,
        "method_title": method.title,
        "source": method.source,
        "num_trainable": counts.trainable,
        "num_trainable_without_head": counts.without_head,
        "num_head": counts.head,
        "trained_parts": trained_parts(model),
        "reported": {"which": "probe", "epoch": 0, "val_accuracy": probe.val_accuracy},
        "calibration": {**trained.summary["calibration"], "temperature": probe.temperature},
    }
    chosen = replace(trained, model=model, summary=summary)
    if folder is not None and accelerator.is_main_process:
        folder.summary.unlink()
        shutil.copytree(folder.adapter, folder.path / "adapted", dirs_exist_ok=True)
        _write(chosen, folder, config.model_copy(update={"method": method.name, "method_args": {}}))
    return chosen


def _fit_solved(
    config: TrainConfig, folder: RunFolder | None, process: PartialState, observer: Observer,
    backbone: Backbone, splits: Splits, known: _Known,
) -> Trained:  # fmt: skip
    """A run without steps: features once, the head solved, all files as of any run."""
    accelerator = _new_accelerator(config, "fp32")
    _reset_peak(accelerator)
    probe = solve_probe(
        backbone, splits, method=config.method, method_args=config.method_args,
        device=process.device, seed=config.seed, budget_mib=config.memory_budget_mib,
        on_progress=observer.prepared,
    )  # fmt: skip
    own = {**config.method_args, **probe.head.arguments()}
    model = attach(backbone, config.method, own)
    probe.head.place(model)
    facts = _facts(config, backbone, count_parameters(model), splits, None, "fp32", accelerator)
    facts |= {"backbone_notice": known.notice, "scarcity_notice": known.scarcity}
    observer.described(facts)
    if folder is not None and accelerator.is_main_process:
        write_atomic(folder.config, config.to_yaml())
    row = probe.as_epoch(len(splits.train or ()))
    summary = {
        **facts,
        "reported": {"which": "solved", "epoch": 1, "val_accuracy": probe.val_accuracy},
        "solved": probe.facts(),
        "calibration": {
            "temperature": known.temperature or probe.temperature if splits.val is None
            else probe.temperature
        },
        "best_epoch": 1, "epochs": 1, "steps": 0,
        "seconds": probe.seconds,
        "peak_mib": _peak_mib(accelerator),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "finished",
        "trained_parts": trained_parts(model),
    }  # fmt: skip
    path = None if folder is None else folder.path
    trained = Trained(path, model, backbone, splits.classes, summary)
    if folder is not None and accelerator.is_main_process:
        folder.metrics.write_text(json.dumps(row) + "\n")
        _write(trained, folder, config.model_copy(update={"method_args": own}))
    accelerator.wait_for_everyone()
    return trained


def _recipe(
    config: TrainConfig, backbone: Backbone, num_images: int, num_processes: int,
    probe: Probe | None,
) -> Recipe:  # fmt: skip
    """Rates and decay: as given, else by rule from the probe, else the method's own."""
    method = get_method(config.method)
    lr = config.lr
    if lr is None and probe is not None:
        lr = rate_by_rule(config, backbone.model, num_images, num_processes, probe)
    elif lr is None and config.start is None:
        steps = _num_steps(config, num_images, num_processes)
        lr = plain_rate(method.default_lr(config.backbone), steps)
    lr = lr or method.default_lr(config.backbone)
    decay = config.weight_decay
    return Recipe(
        lr=lr,
        weight_decay=method.default_weight_decay(config.backbone) if decay is None else decay,
        head_lr=config.head_lr or (lr * HEAD_FACTOR if probe is not None else None),
    )


def rate_by_rule(
    config: TrainConfig, model: nn.Module, num_images: int, num_processes: int, probe: Probe
) -> float:
    """The peak rate that vitune's rule gives for a run that starts at `probe`."""
    steps = _num_steps(config, num_images, num_processes)
    images = config.batch_size * num_processes * config.accumulation_steps
    usual = rate_of(get_method(config.method).usual_lr, shape_of(model, steps, images))
    return float(f"{usual * demand_of(probe.head.chosen.get(CAUTIOUS), num_images):.2g}")


def _num_steps(config: TrainConfig, num_images: int, num_processes: int) -> int:
    """Optimiser steps of the whole run."""
    batches = math.ceil(num_images / (config.batch_size * num_processes))
    return math.ceil(batches / config.accumulation_steps) * config.epochs


def _write(trained: Trained, folder: RunFolder, config: TrainConfig) -> None:
    """The adapter, the summary and the report, in this order: a summary means a whole run."""
    card = replace(
        _card(trained.model, trained.backbone, config, trained.classes),
        temperature=trained.summary["calibration"]["temperature"],
    )
    save_adapter(trained.model, folder.adapter, card)
    size = sum(file.stat().st_size for file in folder.adapter.glob("*.safetensors"))
    trained.summary["adapter_bytes"] = size
    trained.summary["fingerprint"] = card.fingerprint
    write_atomic(folder.summary, json.dumps(trained.summary, indent=2) + "\n")
    write_report(folder.path)


def _snapshot(
    model: PeftModel, backbone: Backbone, config: TrainConfig, folder: RunFolder,
    classes: tuple[str, ...], epoch: int,
) -> None:  # fmt: skip
    """Keep the adapter as it is after so many epochs."""
    save_adapter(model, folder.snapshot(epoch), _card(model, backbone, config, classes))


def _card(
    model: PeftModel, backbone: Backbone, config: TrainConfig, classes: tuple[str, ...]
) -> AdapterCard:
    return card_of(
        model,
        backbone,
        method=config.method,
        method_args=config.method_args,
        backbone_args=backbone_arguments(config),
        classes=classes,
    )


def backbone_arguments(config: TrainConfig) -> dict[str, Any]:
    """The arguments of `load_backbone` that belong to the backbone's identity."""
    values = {"image_size": config.image_size, "checkpoint": config.checkpoint}
    return {key: value for key, value in values.items() if value is not None}


def _settle(
    config: TrainConfig | None, settings: Mapping[str, Any], resumed: str | Path | None
) -> TrainConfig:
    """The settings in force: given ones, or a resumed run's own with more epochs at most."""
    if config is not None and settings:
        raise VituneError("fit: got a config and keywords, expected one of them.")
    if resumed is None:
        return config or TrainConfig.make(settings)
    recorded = RunFolder.create(resumed, resume=True).read_config()
    given = dict(settings) if config is None else config.model_dump(exclude_unset=True)
    changed = {k: v for k, v in given.items() if k in recorded and recorded[k] != v}
    refused = sorted(set(changed) - set(SETTLED_BY_RESUME))
    if refused:
        name = refused[0]
        raise VituneError(
            f"--resume: got {name}={changed[name]!r}, expected the run's own {recorded[name]!r}. "
            "Leave it out, or start a new run."
        )
    unknown = sorted(set(given) - set(TrainConfig.model_fields))
    if unknown:
        raise VituneError(
            f"{unknown[0]}: unknown option. {nearest(unknown[0], TrainConfig.model_fields)}"
        )
    return TrainConfig.make({**recorded, **changed})


def _new_accelerator(config: TrainConfig, precision: str) -> Accelerator:
    """accelerate's processes, devices and precision; one process may train several times."""
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=_on_cpu(config),
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=config.accumulation_steps,
    )


def _facts(
    config: TrainConfig,
    backbone: Backbone,
    counts: ParameterCounts,
    splits: Splits,
    recipe: Recipe | None,
    precision: str,
    accelerator: Accelerator,
) -> dict[str, Any]:
    method = get_method(config.method)
    assert splits.train is not None
    return {
        "method": config.method,
        "method_title": method.title,
        "source": method.source,
        "backbone": backbone.name,
        "num_trainable": counts.trainable,
        "num_trainable_without_head": counts.without_head,
        "num_head": counts.head,
        "num_total": counts.total,
        "mergeable": method.mergeable,
        "data": config.data,
        "num_train": len(splits.train),
        "num_val": 0 if splits.val is None else len(splits.val),
        "num_classes": len(splits.classes),
        "held_out": _describe(splits.held_out),
        "skipped_images": len(splits.skipped),
        "lr": None if recipe is None else recipe.lr,
        "head_lr": None if recipe is None else recipe.head_lr,
        "weight_decay": None if recipe is None else recipe.weight_decay,
        "precision": precision,
        "device": _device_name(accelerator),
        "num_processes": accelerator.num_processes,
        "seed": config.seed,
        "versions": installed_versions(),
    }


def _describe(held_out: HeldOut | None) -> str | None:
    """How validation was cut from training, in words; None where the data brings its own."""
    if held_out is None:
        return None
    return f"{held_out.num_images} images of training, stratified, seed {held_out.seed}"


def _outcome(loop: Loop, accelerator: Accelerator) -> dict[str, Any]:
    config, progress = loop.config, loop.progress
    return {
        "reported": {
            "which": config.select,
            "epoch": loop.reported_epoch,
            "val_accuracy": loop.reported_accuracy,
        },
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "steps": progress.step,
        "seconds": progress.seconds,
        "peak_mib": _peak_mib(accelerator),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "finished" if progress.epoch == config.epochs else "stopped",
    }


def _checkpoint_activations(backbone: Backbone) -> None:
    """Recompute activations in the backward pass, where the backbone's library offers it."""
    for name, arguments in (
        ("set_grad_checkpointing", (True,)),
        ("gradient_checkpointing_enable", ()),
    ):
        if hasattr(backbone.model, name):
            getattr(backbone.model, name)(*arguments)
            return
    raise VituneError(
        f"--checkpointing: got backbone {backbone.name!r}, expected one that can recompute its "
        "activations (timm and transformers models can)."
    )


def _width(model: PeftModel) -> int:
    """Features of the widest LayerNorm-like vector: the network's width."""
    sizes = [len(p) for n, p in model.named_parameters() if p.dim() == 1 and "norm" in n]
    return max(sizes, default=0)


def _device_name(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name(accelerator.device)
    return f"cpu ({torch.get_num_threads()} threads)"


def _reset_peak(accelerator: Accelerator) -> None:
    """Peaks count from here, so that runs of one process do not inherit each other's."""
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    elif CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")


def _peak_mib(accelerator: Accelerator) -> float:
    """Peak memory: the CUDA allocator's, or this process's resident size on a CPU; MiB."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device) / 2**20
    if CLEAR_REFS.exists():
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20
