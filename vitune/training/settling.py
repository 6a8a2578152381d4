"""The settings in force: a new run's with every default filled in, or a resumed run's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from vitune.backbones import absolute_backbone, notice_of, preferred_backbone
from vitune.data import absolute_source
from vitune.errors import DataError, VituneError, nearest
from vitune.methods import Method, get_method, require_plugin
from vitune.runs import RunFolder
from vitune.training.placement import runs_on_cpu
from vitune.training.private import with_privacy
from vitune.training.record import SETTLED_BY_RESUME, RunRecord
from vitune.training.resume_point import read_progress
from vitune.training.speed_presets import FASTER, settled_speed
from vitune.training.train_config import STEPPING, TrainConfig

LEFT_TO_VITUNE: dict[str, Any] = {
    "lr": None,
    "head_lr": None,
    "start": None,
    "choose_best": None,
    "augment": "auto",
    "weight_decay": None,
    "warmup_epochs": None,
    "precision": "auto",
    "device": "auto",
    "speed": None,
}
"""Settings that a run fills in, and the value that requests it."""


def new_settings(
    config: TrainConfig | None, settings: Mapping[str, Any]
) -> tuple[TrainConfig, str]:
    """The settings of a new run, with absolute paths.

    Returns:
        The settings, and a notice about the backbone, or ''.

    Raises:
        VituneError: a config and keywords, an unknown setting, a value out of range, or SGD
            without a rate.
    """
    if config is not None and settings:
        raise VituneError("fit: got a config and keywords, expected only one of the two.")
    asked, notice = with_backbone(config or TrainConfig.make(settings))
    is_solved = get_method(asked.method).solved
    if is_solved:
        require_no_steps(asked)
    require_choice(asked)
    require_validation(asked)
    require_precision(asked)
    if not is_solved and asked.optimiser == "sgd" and asked.lr is None:
        raise VituneError(
            "--optimiser: got 'sgd' without a learning rate, expected --lr as well: the methods' "
            "default rates are for AdamW."
        )
    asked = with_privacy(asked)
    return with_absolute_paths(asked), notice


def with_backbone(config: TrainConfig) -> tuple[TrainConfig, str]:
    """The settings with the backbone filled in, and a notice about it."""
    given = config.model_fields_set
    if not given & {"backbone", "checkpoint", "image_size"}:
        found = preferred_backbone(data=config.data, device=config.device)
        config = config.model_copy(update={"backbone": found})
    return config, backbone_notice(config, was_named="backbone" in given)


def backbone_notice(config: TrainConfig, *, was_named: bool = True) -> str:
    """A notice about the backbone of a run; a resumed run's record names it."""
    name = config.backbone if config.checkpoint is None else f"{config.backbone}@file"
    return notice_of(name, was_named=was_named)


def require_choice(config: TrainConfig) -> None:
    """Refuse --choose-best if there is nothing to choose from or nothing to choose on.

    Raises:
        VituneError: a start or a method for which no probe is solved, or no validation images.
    """
    if not config.choose_best:
        return
    method = get_method(config.method)
    for given, why in (
        (config.start == "plain" and "--start plain", "for which no probe is solved"),
        (
            config.start is None and config.head_init != "zero"
            and f"--head-init {config.head_init}",
            "for which no probe is solved",
        ),
        (
            config.start is None and not method.starts_at_probe and f"--method {config.method}",
            "which trains the classifier alone",
        ),
        (config.refit and "--refit", "which leaves no validation images to choose on"),
    ):  # fmt: skip
        if given:
            raise VituneError(
                f"--choose-best: got it with {given}, {why}, expected only one of the two. Leave "
                "one out."
            )


def require_validation(config: TrainConfig) -> None:
    """Refuse settings that read validation if --refit trains on those images too.

    Raises:
        VituneError: one of them is given.
    """
    for name, usual in (("select", ("auto", "last")), ("patience", (None,))):
        value = getattr(config, name)
        if config.refit and name in config.model_fields_set and value not in usual:
            raise VituneError(
                f"--{name}: got {value!r} with --refit, which leaves no validation images, "
                "expected only one of the two. Leave one out."
            )


def require_precision(config: TrainConfig) -> None:
    """Refuse fp16 on a CPU: accelerate has none there and would compute in fp32 without a word.

    Raises:
        VituneError: it is asked for; or a GPU is, and PyTorch sees none.
    """
    if config.precision == "fp16" and runs_on_cpu(config):
        raise VituneError(
            "--precision: got 'fp16' on a CPU, expected fp32 or bf16: training in fp16 needs a "
            "GPU. Use fp32."
        )


def require_no_steps(config: TrainConfig) -> None:
    """Refuse settings of training by gradient steps for a method that is solved.

    Raises:
        VituneError: one of them is given.
    """
    stepped = get_method(config.method).stepped
    remedy = f"Leave it out, or use --method {stepped}." if stepped else "Leave it out."
    # A preset of speed has filled in settings that nobody typed.
    names = ("speed",) if config.speed in FASTER else STEPPING
    for name in names:
        value = getattr(config, name)
        if value != TrainConfig.model_fields[name].default:
            raise VituneError(
                f"--{name.replace('_', '-')}: got {value!r} with --method {config.method}, which "
                f"is solved, expected a method that takes gradient steps. {remedy}"
            )


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The settings with the paths of data and weights absolute."""
    checkpoint = None if config.checkpoint is None else Path(config.checkpoint).expanduser()
    return config.model_copy(
        update={
            "data": absolute_source(config.data),
            "backbone": absolute_backbone(config.backbone),
            "checkpoint": None if checkpoint is None else str(checkpoint.absolute()),
        }
    )


def with_fitting_batch(config: TrainConfig, num_images: int) -> TrainConfig:
    """The settings with the default batch size lowered to the number of images if that is smaller.

    Raises:
        DataError: the requested batch is larger than the training split.
    """
    if config.batch_size <= num_images:
        return config
    if "batch_size" in config.model_fields_set:
        raise DataError(
            f"--batch-size: got {config.batch_size}, expected at most the {num_images} "
            "training images."
        )
    return config.model_copy(update={"batch_size": num_images})


def filled_in(config: TrainConfig, method: Method, precision: str, device: str) -> TrainConfig:
    """The settings with the choices of the method, the machine and vitune's rules filled in.

    Args:
        precision, device: what "auto" resolved to.
    """
    decay = config.weight_decay
    if decay is None:
        decay = method.default_weight_decay(config.backbone)
    speed, traded = settled_speed(
        config.speed,
        config.tokens,
        typed_arguments(config.method_args),
        method.speed_arguments,
        method.defaults,
    )
    return config.model_copy(
        update={
            "speed": speed,
            "method_args": {**traded, **config.method_args},
            "lr": config.lr or method.default_lr(config.backbone),
            "weight_decay": decay,
            "warmup_epochs": config.resolved_warmup_epochs,
            "precision": precision,
            "device": device,
        }
    )


def resumed_record(
    out: str | Path, config: TrainConfig | None, settings: Mapping[str, Any]
) -> RunRecord:
    """The record of the run in `out`, with the number of epochs requested now.

    Raises:
        AdapterError: there is no run, or its files are damaged or from an older vitune.
        VituneError: a setting differs from the run's own, or fewer epochs are requested than are
            done.
    """
    folder = RunFolder.existing(out)
    record = RunRecord.parse(folder.read_config(), folder.config)
    require_plugin(record.settings.method, record.resolved.plugin)
    given = dict(settings) if config is None else config.model_dump(exclude_unset=True)
    unknown = sorted(set(given) - set(TrainConfig.model_fields))
    if unknown:
        raise VituneError(
            f"{unknown[0]}: unknown option. {nearest(unknown[0], TrainConfig.model_fields)}"
        )
    own = record.settings.model_dump(mode="json")
    both = TrainConfig.make({**own, **given}, is_record=True)
    asked = with_absolute_paths(both).model_dump(mode="json")
    changed = {
        name: asked[name]
        for name in given
        if asked[name] != own[name] and not _left_to_vitune(name, asked[name])
    }
    refused = sorted(set(changed) - set(SETTLED_BY_RESUME))
    if refused:
        name = refused[0]
        raise VituneError(
            f"--resume: got {name}={changed[name]!r}, expected the run's own {own[name]!r}. "
            "Leave it out, or start a new run."
        )
    if "epochs" in changed and record.settings.dp_epsilon is not None:
        raise VituneError(
            f"--epochs: got {changed['epochs']} for a private run, expected its own "
            f"{own['epochs']}: the noise was chosen for that number of steps. Start a new run."
        )
    settled = record.settings.model_copy(update=changed)
    progress = read_progress(folder.checkpoint)
    if progress is not None and settled.epochs < progress.epoch:
        raise VituneError(
            f"--epochs: got {settled.epochs}, expected at least the {progress.epoch} that the "
            "run has already done."
        )
    return replace(record, settings=settled)


def _left_to_vitune(name: str, asked: Any) -> bool:
    return name in LEFT_TO_VITUNE and asked == LEFT_TO_VITUNE[name]


def typed_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with command-line strings parsed as YAML values."""
    return {
        name: yaml.safe_load(value) if isinstance(value, str) else value
        for name, value in arguments.items()
    }
