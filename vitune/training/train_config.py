"""Every setting that affects a training run, in one frozen, validated record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vitune.errors import AdapterError, VituneError, explain
from vitune.preprocessing import PIXEL_STATS, Preprocessing

DecayRule = Literal["vitune", "published"]
HeadInit = Literal["zero", "linear", "trunc_normal", "kaiming_normal"]

CHECKSUM = "sha256"
BESIDE_SETTINGS = ("resolved", "starts", CHECKSUM)
"""What a run's config.yaml holds beside its settings: see `vitune.training.record`."""

STEPPING = (
    "lr", "head_lr", "weight_decay", "warmup_epochs", "clip_grad", "label_smoothing", "mixup",
    "cutmix", "drop_path", "random_erasing", "augment", "ema", "patience", "optimiser", "start",
    "head_init", "objective",
)  # fmt: skip
"""Settings of training by steps, which mean nothing where a head is solved."""


class TrainConfig(BaseModel):
    """What `vitune train` and `vitune.fit` take; unknown keys are errors with the nearest name.

    Durations are in epochs, sizes in pixels, rates per optimiser step unless the name says
    otherwise. `lr` and `weight_decay` left at None take the method's own default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: str = Field(description="folder, .csv/.parquet, vtab:ROOT/TASK or demo:NAME")
    backbone: str = Field("vitune/vit_micro_patch4_32", description="name, hf:NAME or bundled")
    checkpoint: str | None = Field(None, description="local weights for the backbone")
    image_size: int | None = Field(
        None, ge=8, le=4096, description="input size other than the native one"
    )
    method: str = Field("rlrr", description="see 'vitune methods'")
    method_args: dict[str, Any] = Field(default_factory=dict, description="of the method")

    epochs: int = Field(30, ge=1, description="passes over the training images")
    lr: float | None = Field(None, gt=0, description="peak learning rate; None: by rule")
    head_lr: float | None = Field(
        None, gt=0, description="of the classifier; None: --lr, a tenth of it from the probe"
    )
    batch_size: int = Field(32, ge=1, description="images a step and process")
    drop_last: bool = Field(False, description="leave out an epoch's last batch if it is not full")
    optimiser: Literal["adamw", "sgd"] = Field("adamw", description="sgd needs --lr")
    momentum: float = Field(0.9, ge=0, lt=1, description="of --optimiser sgd")
    weight_decay: float | None = Field(None, ge=0, description="None: the method's")
    decay_rule: DecayRule = Field(
        "vitune", description="which parameters decay: vitune's rule, or the method's authors'"
    )
    warmup_epochs: float | None = Field(None, ge=0, description="None: a tenth, 10 at most")
    warmup_lr: float = Field(1e-7, ge=0, description="learning rate at the first step")
    min_lr: float = Field(1e-8, ge=0, description="learning rate at the end of the cosine")
    accumulation_steps: int = Field(1, ge=1, description="batches an optimiser step")
    clip_grad: float | None = Field(None, gt=0, description="gradient norm is clipped to this")

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="alpha of cutmix; 0 is off")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the backbone")
    random_erasing: float = Field(0.0, ge=0, le=1, description="share of images with a noise box")
    augment: str = Field(
        "none", description="none, flip, crop_flip, fgvc, strong, window or resized_crop"
    )
    ema: float | None = Field(None, gt=0, lt=1, description="decay of averaged weights a step")
    ema_ramp: bool = Field(True, description="averages start with a smaller decay")
    head_init: HeadInit = Field("zero", description="how the new classifier starts")
    start: Literal["plain", "probe"] | None = Field(
        None, description="probe: the classifier starts at the solved probe; None: the method's"
    )
    objective: str = Field("cross_entropy", description="training loss")
    objective_args: dict[str, Any] = Field(default_factory=dict, description="of the objective")

    crop_mode: Literal["squash", "center"] | None = Field(
        None, description="squash to the input size, or keep the aspect; None: as the checkpoint"
    )
    crop_pct: float | None = Field(
        None, gt=0, le=1, description="part of the resized image kept; None: as the checkpoint"
    )
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] | None = Field(
        None, description="filter of the resize; None: as the checkpoint"
    )
    pixel_stats: Literal["half", "imagenet"] | None = Field(
        None, description="mean and std: 0.5 each, or ImageNet's; None: as the checkpoint"
    )

    select: Literal["auto", "last", "best"] = Field(
        "auto",
        description="epoch that is saved: the last, the best on validation, or the last unless "
        "validation loss has turned",
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many epochs without gain; None: as --select auto"
    )
    choose_best: bool = Field(
        False, description="save the solved probe instead where it is better on validation"
    )
    val_fraction: float = Field(0.2, gt=0, lt=1, description="held out where no val split is given")
    refit: bool = Field(False, description="train on training and validation images together")
    skip_bad_images: bool = Field(False, description="leave unreadable images out and count them")
    memory_budget_mib: int | None = Field(None, ge=1, description="decoded images kept in memory")

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    checkpointing: bool = Field(False, description="recompute activations to save memory")
    lean: bool = Field(True, description="keep and compute only what the step needs")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = Field(0, ge=0, lt=2**63)
    checkpoint_every_epochs: int = Field(1, ge=1)
    snapshot_every_epochs: int = Field(
        0, ge=0, description="keep the adapter of every so many epochs for 'vitune analyze'; 0: no"
    )

    @field_validator("data", "backbone", "method")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("expected a name, not an empty text")
        return value

    @property
    def resolved_warmup_epochs(self) -> float:
        """Warm-up in epochs: as given, else a tenth of the epochs and at most 10."""
        return min(10.0, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs

    def prepared(self, preprocessing: Preprocessing) -> Preprocessing:
        """A checkpoint's own preprocessing with what these settings say otherwise."""
        given = {
            "crop_mode": self.crop_mode,
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
        }
        changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if self.pixel_stats is not None:
            changes["mean"], changes["std"] = PIXEL_STATS[self.pixel_stats]
        return replace(preprocessing, **changes)

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> TrainConfig:
        """A configuration from plain values.

        Raises:
            VituneError: an unknown key (the nearest is named) or a value out of range.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise VituneError(explain(error, cls.model_fields)) from None

    @classmethod
    def read(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
        """The settings in a YAML file (a run's config.yaml, say), `overrides` winning over it.

        Raises:
            VituneError: no such file, not a YAML mapping, or what `make` refuses.
        """
        values = read_yaml(path)
        return cls.make({**values, **(overrides or {})})


def settings_in(values: Mapping[str, Any], file: Path) -> TrainConfig:
    """The settings among the values of a run's config.yaml.

    Raises:
        AdapterError: one is missing, unknown or out of range; the text names file and setting.
    """
    settings = {key: value for key, value in values.items() if key not in BESIDE_SETTINGS}
    try:
        return TrainConfig.make(settings)
    except VituneError as error:
        raise AdapterError(f"{file}: {error} Put the file back as training wrote it.") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file; what a run's config.yaml holds beside them is left out.

    Raises:
        VituneError: no such file, or it holds no mapping.
    """
    file = Path(path)
    if not file.is_file():
        raise VituneError(f"--config: got {str(path)!r}, expected an existing YAML file.")
    try:
        values = yaml.safe_load(file.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise VituneError(f"--config: got {str(path)!r}, expected YAML: {reason}") from None
    if not isinstance(values, dict):
        raise VituneError(f"--config: got {str(path)!r}, expected 'key: value' lines.")
    return {key: value for key, value in values.items() if key not in BESIDE_SETTINGS}
