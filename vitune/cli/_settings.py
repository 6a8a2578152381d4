"""Command-line options made from the fields of a settings record, each named once, there."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vitune.errors import VituneError

PAIR_OPTIONS = {"method_args": "method_arg", "objective_args": "objective_arg"}


def with_settings(
    model: type[BaseModel], *, leave_out: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one option per field of `model`, collected into its `settings` argument.

    An option not given is left out of `settings`, so that a configuration file can say it.
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
    for word in words or []:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise VituneError(f"{option}: got {word!r}, expected NAME=VALUE, e.g. {option} r=8.")
        found[name.strip().replace("-", "_")] = value.strip()
    return found


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    option = f"--{PAIR_OPTIONS.get(name, name).replace('_', '-')}"
    keyword = PAIR_OPTIONS.get(name, name)
    if name in PAIR_OPTIONS:
        kind: Any = list[str] | None
        settings = typer.Option(None, option, metavar="NAME=VALUE", help=_help(field))
    elif _plain_type(field) is bool:
        kind = bool | None
        settings = typer.Option(None, f"{option}/--no-{option[2:]}", help=_help(field))
    else:
        kind = _plain_type(field) | None
        settings = typer.Option(None, option, help=_help(field), metavar=_metavar(field))
    return inspect.Parameter(
        keyword, inspect.Parameter.KEYWORD_ONLY, default=settings, annotation=kind
    )


def _plain_type(field: FieldInfo) -> Any:
    """The type to parse: of `int | None` the int; of Literal its text."""
    kind = field.annotation
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    return str if typing.get_origin(kind) is Literal else kind


def _metavar(field: FieldInfo) -> str | None:
    if typing.get_origin(field.annotation) is Literal:
        return "|".join(typing.get_args(field.annotation))
    return None


def _help(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, {}, ()) or field.is_required() else f"  [{default}]"
    return f"{field.description or ''}{shown}".strip()


def read_settings(config: str | None, settings: Mapping[str, Any]) -> Any:
    """A TrainConfig from a YAML file (if any) with the command line's values over it."""
    from vitune.training.train_config import TrainConfig

    if config is None:
        return TrainConfig.make(settings)
    return TrainConfig.read(config, settings)
