"""Options of a command: declared in records, shown in groups."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

DATA = "Data"
MODEL = "Backbone and method"
TRAINING = "Training"
REGULARISATION = "Regularisation"
PRIVACY = "Privacy"
PREPROCESSING = "Image preprocessing"
STUDY = "Study"
MEASURE = "Measurement"
RUNNING = "Speed and memory"
OUTPUT = "Output"
SERVER = "Server"
LIMITS = "Limits on requests"
OTHER = "Options"
GROUPS = (
    "Arguments", DATA, MODEL, TRAINING, REGULARISATION, PRIVACY, PREPROCESSING, STUDY, MEASURE,
    RUNNING, SERVER, LIMITS, OUTPUT,
)  # fmt: skip
"""The groups of a command's help, in display order; all other options come last."""

NAMES = "NAME,..."
NUMBERS = "NUMBER,..."
PATHS = "PATH,..."
PAIRS = "NAME=VALUE,..."
"""The placeholder after an option that takes several values; see `vitune.cli._words`."""

IMAGE_GROUPS = (
    "regular expression that finds in an image's path what it shows, e.g. 'patient[0-9]+'"
)
"""The help of --groups; see `vitune.data.grouping`."""

ONE_SENTENCE = 300
"""Characters; longer than any summary."""


class GroupedCommand(TyperCommand):
    """A command whose help shows options by group, in plain text.

    typer draws groups (`rich_help_panel`) as boxes, which cost rich's import at every --help and
    cut long names at 80 columns; plain text is wrapped instead.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for parameter in self.get_params(ctx):
            record = _help_record(parameter, ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                panel = getattr(parameter, "rich_help_panel", None)
                groups["Arguments" if is_argument else panel or OTHER].append(record)
        for title in (*GROUPS, OTHER):
            if title in groups:
                with formatter.section(title):
                    formatter.write_dl(groups[title])


def _help_record(parameter: Any, ctx: Any) -> tuple[str, str] | None:
    """What --help says of an option, without two faults of older releases of typer.

    Up to 0.25, click 8.5 takes the help away from typer's arguments. Up to 0.20, typer writes
    brackets as rich wants them, and rich does not print this text.
    """
    if parameter.param_type_name == "argument" and parameter.help is None:
        declared = inspect.signature(ctx.command.callback).parameters[parameter.name].default
        parameter.help = getattr(declared, "help", None)
    record = parameter.get_help_record(ctx)
    return record and (record[0], record[1].replace("\\[", "["))


class WholeSummaries(TyperGroup):
    """A set of commands whose help shows the full first sentence of each; click would cut it."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        lines = [
            (name, command.get_short_help_str(limit=ONE_SENTENCE))
            for name, command in commands
            if command is not None
        ]
        with formatter.section("Commands"):
            formatter.write_dl(lines)


class Verbs(typer.Typer):
    """A set of commands with grouped help."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"cls": WholeSummaries, **settings})

    def command(self, name: str | None = None, **settings: Any) -> Any:
        """As typer's, with `GroupedCommand`."""
        return super().command(name, **{"cls": GroupedCommand, **settings})


def with_records(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the fields of each dataclass it takes as options of their own.

    A field is written as typer's options are: `name: Annotated[type, typer.Option(...)] = default`.
    The command receives the records filled in.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    records: dict[str, Any] = {
        name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)
    }
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in records:
            parameters += _options_of(records[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=_BY_NAME))

    def called(**given: Any) -> Any:
        for name, record in records.items():
            names = [field.name for field in dataclasses.fields(record)]
            given[name] = record(**{key: given.pop(key) for key in names})
        return command(**given)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    called.__doc__, called.__name__ = command.__doc__, command.__name__
    return called


_BY_NAME = inspect.Parameter.KEYWORD_ONLY


def _options_of(record: Any) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(record, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            _BY_NAME,
            annotation=hints[field.name],
            default=inspect.Parameter.empty
            if field.default is dataclasses.MISSING
            else field.default,
        )
        for field in dataclasses.fields(record)
    ]
