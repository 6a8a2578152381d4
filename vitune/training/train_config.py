"""Every setting that affects a training run, in one frozen, validated record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from vitune.errors import AdapterError, VituneError, explain
from vitune.fewer_tokens.token_plan import TOKENS_HELP, TokenPlan
from vitune.preprocessing import PIXEL_STATS, Preprocessing
from vitune.seals import SEAL
from vitune.training.speed_presets import PRESETS, Speed, with_preset

DecayRule = Literal["vitune", "published"]
HeadInit = Literal["zero", "linear", "trunc_normal", "kaiming_normal"]

IS_RECORD = "is_record"
IDENTITY = "identity"
BESIDE_SETTINGS = ("resolved", "starts", IDENTITY, SEAL)
"""What a run's config.yaml holds besides its settings: see `vitune.training.record`."""

STEPPING = (
    "lr", "head_lr", "weight_decay", "warmup_epochs", "clip_grad", "label_smoothing", "mixup",
    "cutmix", "drop_path", "random_erasing", "augment", "ema", "patience", "optimiser", "start",
    "head_init", "objective", "tokens",
)  # fmt: skip
"""Settings of training by gradient steps, which mean nothing if the head is solved."""


class TrainConfig(BaseModel):
    """What `vitune train` and `vitune.fit` take; unknown keys are errors, for which `fit` and
    `TrainConfig.make` name the nearest.

    Durations are in epochs, sizes in pixels, rates per optimiser step unless the name says
    otherwise. What is left at None is settled by `fit`: the learning rate by a rule that looks at
    data, method and network, the weight decay by the method. A backbone that is not named is a
    well-known ViT from the hub or its cache if there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: str = Field(description="folder, .csv/.parquet, vtab:ROOT/TASK or demo:NAME")
    backbone: str = Field(
        "vitune/vit_micro_patch4_32",
        description="timm name, hf:NAME, torchvision:NAME or bundled; if none is named, a ViT from "
        "the hub or its cache comes before the default",
    )
    checkpoint: str | None = Field(None, description="local weights for the backbone")
    image_size: int | None = Field(
        None, ge=8, le=4096, description="input size in pixels; default: the backbone's own"
    )
    method: str = Field("rlrr", description="see 'vitune methods'")
    method_args: dict[str, Any] = Field(
        default_factory=dict, description="argument of the method, e.g. rank=4"
    )

    epochs: int = Field(30, ge=1, description="passes over the training images")
    lr: float | None = Field(None, gt=0, description="peak learning rate; default: chosen by rule")
    head_lr: float | None = Field(
        None,
        gt=0,
        description="the classifier's learning rate; default: --lr, or a tenth of it when "
        "starting at the probe",
    )
    batch_size: int = Field(32, ge=1, description="images per step and process")
    drop_last: bool = Field(False, description="skip an epoch's last batch if it is not full")
    optimiser: Literal["adamw", "sgd"] = Field("adamw", description="optimiser; sgd needs --lr")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of --optimiser sgd")
    weight_decay: float | None = Field(
        None, ge=0, description="weight decay; default: the method's"
    )
    decay_rule: DecayRule = Field(
        "vitune", description="which parameters decay: by vitune's rule, or as in the authors' code"
    )
    warmup_epochs: float | None = Field(
        None, ge=0, description="epochs of warm-up; default: a tenth of the epochs, at most 10"
    )
    warmup_lr: float = Field(1e-7, ge=0, description="learning rate at the first step")
    min_lr: float = Field(1e-8, ge=0, description="learning rate at the end of the schedule")
    accumulation_steps: int = Field(1, ge=1, description="batches per optimiser step")
    clip_grad: float | None = Field(None, gt=0, description="clip the gradient norm to this")

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing, in [0, 1)")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="alpha of cutmix; 0 is off")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the backbone")
    random_erasing: float = Field(
        0.0, ge=0, le=1, description="share of images in which a random box is erased"
    )
    augment: str = Field(
        "auto",
        description="augmentation: none, shift, flip, crop_flip, fgvc, strong, window or "
        "resized_crop; auto: what labels survive, judged with solved probes",
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay per step of the averaged weights"
    )
    ema_ramp: bool = Field(True, description="start averaging with a smaller decay")
    head_init: HeadInit = Field("zero", description="how the new classifier is initialised")
    start: Literal["plain", "probe"] | None = Field(
        None,
        description="probe: start at the solved probe; plain: at --head-init; "
        "default: chosen by rule",
    )
    objective: str = Field("cross_entropy", description="training loss")
    objective_args: dict[str, Any] = Field(
        default_factory=dict, description="argument of the objective"
    )

    dp_epsilon: float | None = Field(
        None,
        gt=0,
        le=1000,  # beyond it nothing is private, and the accountant's search does not end
        description="train with differential privacy and spend at most this epsilon",
    )
    dp_delta: float = Field(1e-5, gt=0, lt=1, description="delta of the guarantee")
    dp_clip: float = Field(1.0, gt=0, description="norm to which each image's gradient is clipped")

    crop_mode: Literal["squash", "center"] | None = Field(
        None,
        description="squash: ignore the aspect ratio; center: keep it; default: the checkpoint's",
    )
    crop_pct: float | None = Field(
        None, gt=0, le=1, description="share of the resized image kept; default: the checkpoint's"
    )
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] | None = Field(
        None, description="resize filter; default: the checkpoint's"
    )
    pixel_stats: Literal["half", "imagenet"] | None = Field(
        None, description="mean and std: 0.5, or ImageNet's; default: the checkpoint's"
    )

    select: Literal["auto", "last", "best"] = Field(
        "auto",
        description="epoch to save: last, best, or auto: the last unless validation loss got worse",
    )
    patience: int | None = Field(
        None, ge=1, description="stop after this many epochs without improvement; default: auto"
    )
    choose_best: bool | None = Field(
        None,
        description="save the solved probe instead if it is better on validation; default: yes, "
        "unless --lr or --start is given",
    )
    val_fraction: float = Field(
        0.2, gt=0, lt=1, description="share held out for validation if there is no val split"
    )
    groups: str | None = Field(
        None,
        description="regular expression that finds in an image's path what it shows, e.g. "
        "'patient[0-9]+'; images of one group are validated or trained on together",
    )
    refit: bool = Field(False, description="train on training and validation images together")
    skip_bad_images: bool = Field(False, description="skip unreadable images and count them")
    memory_budget_mib: int | None = Field(
        None, ge=1, description="memory for decoded images; the rest is read from disk"
    )

    speed: Speed | None = Field(
        None,
        description="exact, or fast or fastest: bf16, lean step, fewer tokens and approximations "
        "the method allows; default: as the other flags say",
    )
    tokens: str = Field("keep", description=TOKENS_HELP)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="number format of the step"
    )
    checkpointing: bool = Field(False, description="recompute activations to save memory")
    lean: bool = Field(True, description="lean step: store and compute only what is needed")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    seed: int = Field(0, ge=0, lt=2**63, description="random seed")
    checkpoint_every_epochs: int = Field(1, ge=1, description="how often to save for --resume")
    snapshot_every_epochs: int = Field(
        0, ge=0, description="how often to keep the adapter for 'vitune analyze'; 0: never"
    )

    @field_validator("data", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("data", "backbone", "method")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("expected a name, not an empty text")
        return value

    @field_validator("tokens")
    @classmethod
    def _known_tokens(cls, value: str) -> str:
        return str(TokenPlan.parse(value))

    @field_validator("method_args", "objective_args")
    @classmethod
    def _plain_arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {name: _plain(argument) for name, argument in value.items()}

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, dict):
            return values
        return with_preset(values, is_record=bool((info.context or {}).get(IS_RECORD)))

    @property
    def token_plan(self) -> TokenPlan:
        """`tokens`, parsed."""
        return TokenPlan.parse(self.tokens)

    @property
    def resolved_warmup_epochs(self) -> float:
        """Warm-up in epochs: as given, else a tenth of the epochs and at most 10."""
        return min(10.0, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs

    def prepared(self, preprocessing: Preprocessing) -> Preprocessing:
        """A checkpoint's own preprocessing with the overrides of these settings."""
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
    def make(cls, values: Mapping[str, Any], *, is_record: bool = False) -> TrainConfig:
        """A configuration from plain values.

        Args:
            is_record: the values are those of a run, in which nothing is left open.

        Raises:
            VituneError: an unknown key (the nearest is named) or a value out of range.
        """
        try:
            return cls.model_validate(dict(values), context={IS_RECORD: is_record})
        except ValidationError as error:
            raise VituneError(explain(error, cls.model_fields)) from None

    @classmethod
    def read(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
        """The settings in a YAML file (a run's config.yaml, say), `overrides` winning over it.

        Raises:
            VituneError: no such file, not a YAML mapping, or a value that `make` refuses.
        """
        written, given = _read_mapping(path), dict(overrides or {})
        values = _without_record(written)
        # Values filled in by the file's preset give way to another preset, its name to single
        # flags.
        if "speed" in given:
            for name in PRESETS.get(str(given["speed"]), {}):
                values.pop(name, None)
        elif given.keys() & {"method_args", *PRESETS["fast"]}:
            values.pop("speed", None)
        # So does what chooses if the given settings leave nothing to choose from or on.
        if given.get("start") == "plain" or given.get("refit"):
            values.pop("choose_best", None)
        if given.get("refit"):
            values.pop("select", None)
            values.pop("patience", None)
        # A run with a plain start and a choice solved a probe whose features fell short. The rule
        # will find that again; an explicit start would leave out the probe.
        chose = given.get("choose_best", values.get("choose_best"))
        if "resolved" in written and chose and values.get("start") == "plain":
            values["start"] = None
        return cls.make({**values, **given}, is_record="resolved" in written)


def settings_in(values: Mapping[str, Any], file: Path) -> TrainConfig:
    """The settings among the values of a run's config.yaml.

    Raises:
        AdapterError: one is missing, unknown or out of range; the text names file and setting.
    """
    settings = _without_record(values)
    try:
        return TrainConfig.make(settings, is_record=True)
    except VituneError as error:
        raise AdapterError(f"{file}: {error} Put the file back as training wrote it.") from None


def read_yaml(path: str | Path, where: str = "--config") -> dict[str, Any]:
    """The settings in a YAML file; what else a run's config.yaml holds is left out.

    Args:
        where: what errors call the file.

    Raises:
        VituneError: no such file, or it holds no mapping.
    """
    return _without_record(_read_mapping(path, where))


def _plain(value: Any) -> Any:
    """The same with Python's own numbers for NumPy's, which neither JSON nor YAML holds."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _without_record(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in BESIDE_SETTINGS}


class _EachKeyOnce(yaml.SafeLoader):
    """Reads YAML and refuses a key that stands twice in one mapping, where the last would win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read_mapping(path: str | Path, where: str = "--config") -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise VituneError(f"{where}: got {str(path)!r}, expected an existing YAML file.")
    try:
        values = yaml.load(file.read_text(), _EachKeyOnce) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise VituneError(f"{where}: got {str(path)!r}, expected YAML: {reason}") from None
    if not isinstance(values, dict):
        raise VituneError(f"{where}: got {str(path)!r}, expected 'key: value' lines.")
    stray = next((key for key in values if not isinstance(key, str)), None)
    if stray is not None:
        raise VituneError(f"{where}: got the key {stray!r} in {str(path)!r}, expected a name.")
    return values
