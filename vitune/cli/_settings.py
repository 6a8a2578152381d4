"""Command-line options made from the fields of a settings record."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vitune.cli import _completion
from vitune.cli._options import (
    DATA,
    MODEL,
    OTHER,
    OUTPUT,
    PAIRS,
    PREPROCESSING,
    PRIVACY,
    REGULARISATION,
    RUNNING,
    TRAINING,
)
from vitune.cli._words import pair_words
from vitune.errors import VituneError

PAIR_OPTIONS = {"method_args": "method_arg", "objective_args": "objective_arg"}
FIELDS = {
    DATA: ("data", "val_fraction", "groups", "refit", "skip_bad_images"),
    MODEL: ("backbone", "checkpoint", "image_size", "method", "method_args", "head_init"),
    TRAINING: (
        "epochs", "lr", "head_lr", "start", "batch_size", "accumulation_steps", "drop_last",
        "optimiser", "momentum",
        "weight_decay", "decay_rule", "warmup_epochs", "warmup_lr", "min_lr", "clip_grad",
        "objective", "objective_args", "select", "patience", "choose_best", "seed",
    ),
    REGULARISATION: (
        "augment", "random_erasing", "mixup", "cutmix", "label_smoothing", "drop_path", "ema",
        "ema_ramp",
    ),
    PRIVACY: ("dp_epsilon", "dp_delta", "dp_clip"),
    PREPROCESSING: ("crop_mode", "crop_pct", "interpolation", "pixel_stats"),
    RUNNING: (
        "speed", "tokens", "device", "precision", "lean", "checkpointing", "memory_budget_mib",
    ),
    OUTPUT: ("checkpoint_every_epochs", "snapshot_every_epochs"),
}  # fmt: skip
"""The fields of a settings record by help group."""
GROUP_OF = {field: group for group, fields in FIELDS.items() for field in fields}
COMPLETED = {"method": _completion.methods, "backbone": _completion.backbones}


def with_settings(
    model: type[BaseModel], *, leave_out: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one option per field of `model`, collected into its `settings` argument.

    An option not given is left out of `settings`, so that a configuration file can set it.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        fields = {k: f for k, f in model.model_fields.items() if k not in leave_out}
        own = inspect.signature(command)

        def called(**given: Any) -> Any:
            settings = {}
            for name in fields:
                value = given.pop(PAIR_OPTIONS.get(name, name))
                if name in PAIR_OPTIONS:
                    value = pairs(value, f"--{PAIR_OPTIONS[name].replace('_', '-')}") or None
                if value is not None:
                    settings[name] = value
            return command(settings=settings, **given)

        parameters = [p for p in own.parameters.values() if p.name != "settings"]
        added = [_parameter(name, field) for name, field in fields.items()]
        called.__signature__ = inspect.Signature([*parameters, *added])  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in (*parameters, *added)}
        called.__doc__, called.__name__ = command.__doc__, command.__name__
        return called

    return decorate


def pairs(words: list[str] | None, option: str) -> dict[str, str]:
    """{'r': '8'} from ['r=8'].

    Raises:
        VituneError: a word without '='.
    """
    found = {}
    for word in pair_words(words):
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise VituneError(f"{option}: got {word!r}, expected NAME=VALUE, e.g. {option} r=8.")
        found[name.strip().replace("-", "_")] = value.strip()
    return found


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    keyword = PAIR_OPTIONS.get(name, name)
    option = f"--{keyword.replace('_', '-')}"
    choices = _choices(field)
    told: dict[str, Any] = {"help": _help(field), "rich_help_panel": GROUP_OF.get(name, OTHER)}
    if name in COMPLETED or choices:
        told["autocompletion"] = COMPLETED.get(name) or _completion.one_of(choices)
    if name in PAIR_OPTIONS:
        kind: Any = list[str] | None
        told["metavar"] = PAIRS
    elif _plain_type(field) is bool:
        kind = bool | None
        option = f"{option}/--no-{option[2:]}"
    else:
        kind = _plain_type(field) | None
        told["metavar"] = "|".join(choices) or None
    return inspect.Parameter(
        keyword,
        inspect.Parameter.KEYWORD_ONLY,
        default=typer.Option(None, option, **told),
        annotation=kind,
    )


def _plain_type(field: FieldInfo) -> Any:
    """The type to parse: of `int | None` the int; of Literal its text."""
    kind = field.annotation
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    return str if typing.get_origin(kind) is Literal else kind


def _choices(field: FieldInfo) -> tuple[str, ...]:
    """The allowed words of a setting, if they are few and fixed."""
    kinds = (field.annotation, *typing.get_args(field.annotation))
    return next((typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is Literal), ())


def _help(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, {}, ()) or field.is_required() else f"  [default: {default}]"
    return f"{field.description or ''}{shown}".strip()


def read_settings(config: str | None, settings: Mapping[str, Any]) -> Any:
    """A TrainConfig from a YAML file (if any) with the command line's values over it."""
    from vitune.training.train_config import TrainConfig

    if config is None:
        return TrainConfig.make(settings)
    return TrainConfig.read(config, settings)
