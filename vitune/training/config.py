"""Every setting that affects a training run, in one frozen, validated record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vitune.errors import VituneError, nearest


class TrainConfig(BaseModel):
    """What `vitune train` and `vitune.fit` take; unknown keys are errors with the nearest name.

    Durations are in epochs, sizes in pixels, rates per optimiser step unless the name says
    otherwise. `lr` and `weight_decay` left at None take the method's own default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(description="folder, .csv/.parquet, vtab:ROOT/TASK or demo:NAME")
    backbone: str = Field("vitune/vit_micro_patch4_32", description="name, hf:NAME or bundled")
    checkpoint: str | None = Field(None, description="local weights for the backbone")
    image_size: int | None = Field(
        None, ge=8, le=4096, description="input size other than the native one"
    )
    method: str = Field("rlrr", description="see 'vitune methods'")
    method_args: dict[str, Any] = Field(default_factory=dict, description="of the method")

    epochs: int = Field(100, ge=1, description="passes over the training images")
    lr: float | None = Field(None, gt=0, description="peak learning rate; None: the method's")
    batch_size: int = Field(32, ge=1, description="images a step and process")
    weight_decay: float | None = Field(None, ge=0, description="AdamW's; None: the method's")
    warmup_epochs: float | None = Field(None, ge=0, description="None: a tenth, 10 at most")
    min_lr: float = Field(1e-8, ge=0, description="learning rate at the end of the cosine")
    accumulation_steps: int = Field(1, ge=1, description="batches an optimiser step")
    clip_grad: float | None = Field(None, gt=0, description="gradient norm is clipped to this")

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="alpha of cutmix; 0 is off")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the backbone")
    augment: str = Field("none", description="none, flip, crop_flip, ...")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of averaged weights a step")
    objective: str = Field("cross_entropy", description="training loss")
    objective_args: dict[str, Any] = Field(default_factory=dict, description="of the objective")

    select: Literal["last", "best"] = Field("last", description="epoch that is reported and saved")
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without gain")
    val_fraction: float = Field(0.2, gt=0, lt=1, description="held out where no val split is given")
    refit: bool = Field(False, description="train on training and validation images together")
    skip_bad_images: bool = Field(False, description="leave unreadable images out and count them")
    memory_budget_mib: int | None = Field(None, ge=1, description="decoded images kept in memory")

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    checkpointing: bool = Field(False, description="recompute activations to save memory")
    lean: bool = Field(True, description="keep and compute only what the step needs")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = Field(0, ge=0)
    checkpoint_every_epochs: int = Field(1, ge=1)

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

    def to_yaml(self) -> str:
        """The settings as YAML, each on its line."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> TrainConfig:
        """A configuration from plain values.

        Raises:
            VituneError: an unknown key (the nearest is named) or a value out of range.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise VituneError(_explain(error, cls)) from None

    @classmethod
    def read(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
        """The configuration in a YAML file, `overrides` winning over the file.

        Raises:
            VituneError: no such file, not a YAML mapping, or what `make` refuses.
        """
        values = read_yaml(path)
        return cls.make({**values, **(overrides or {})})


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

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
    return values


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for all that pydantic found wrong."""
    parts = []
    for problem in error.errors():
        name = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            parts.append(f"{name}: unknown option. {nearest(name, model.model_fields)}")
        elif problem["type"] == "missing":
            parts.append(f"{name}: got nothing, expected a value.")
        else:
            reason = problem["msg"].removeprefix("Value error, ")
            parts.append(f"{name}: got {problem['input']!r}, {reason[0].lower()}{reason[1:]}.")
    return " ".join(parts)
