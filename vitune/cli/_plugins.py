"""The option --plugin of every command that trains or loads a method."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer

from vitune.cli._options import MODEL
from vitune.cli._words import paths

PLUGIN = typer.Option(
    None,
    "--plugin",
    metavar="FILE.py,...",
    help="Python files with your own methods",
    rich_help_panel=MODEL,
)


def with_plugins(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--plugin FILE.py`; the file runs before the command does."""
    own = inspect.signature(command, eval_str=True)
    added = inspect.Parameter(
        "plugin", inspect.Parameter.KEYWORD_ONLY, default=PLUGIN, annotation=list[str] | None
    )

    def called(plugin: list[str] | None = None, **given: Any) -> Any:
        for file in paths(plugin):
            from vitune.methods import load_plugin

            load_plugin(file)
        return command(**given)

    parameters = [*own.parameters.values(), added]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__doc__, called.__name__ = command.__doc__, command.__name__
    return called
