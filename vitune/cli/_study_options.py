"""Options of the commands that run studies, as records, and the syntax of method arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from vitune.cli import _completion
from vitune.cli._options import (
    DATA,
    MODEL,
    NAMES,
    NUMBERS,
    OUTPUT,
    RUNNING,
    STUDY,
)


def methods_option(help_text: str = "see 'vitune methods'") -> Any:
    """The option --methods of one command."""
    return typer.Option(
        "--methods",
        metavar=NAMES,
        help=help_text,
        autocompletion=_completion.several_methods,
        rich_help_panel=MODEL,
    )


METHODS = methods_option()
METHOD_ARG = typer.Option(
    "--method-arg",
    metavar="[METHOD:]NAME=VALUE,...",
    help="argument of a method, e.g. lora:r=16",
    rich_help_panel=MODEL,
)


def backbone_option(default: str = "") -> Any:
    """--backbone, with what stands in for it if the help cannot show a value."""
    return typer.Option(
        "--backbone",
        help="name, hf:NAME or bundled" + default,
        autocompletion=_completion.backbones,
        rich_help_panel=MODEL,
    )


BACKBONE = backbone_option()
CHECKPOINT = typer.Option(
    "--checkpoint", help="local weights for the backbone", rich_help_panel=MODEL
)
BATCH_SIZE = typer.Option(
    "--batch-size",
    help="images per step; default 32, or all if there are fewer",
    rich_help_panel=STUDY,
)
SEEDS = typer.Option("--seeds", help="runs of each method and task", rich_help_panel=STUDY)
LRS = typer.Option(
    "--lrs",
    metavar=NUMBERS,
    help="learning rates to choose from on validation, e.g. 1e-3,3e-3,1e-2",
    rich_help_panel=STUDY,
)
OVERLAP = typer.Option(
    "--allow-overlap",
    help="accept splits that share images; score with and without them",
    rich_help_panel=DATA,
)
RERUN = typer.Option(
    "--rerun-changed",
    help="repeat runs made by other versions or devices",
    rich_help_panel=RUNNING,
)
JOBS = typer.Option("--jobs", help="processes on this machine", rich_help_panel=RUNNING)
KEEP = typer.Option(
    "--keep",
    metavar=NAMES,
    help="what else to keep; adapters: those of the final runs, for vitune analyze",
    rich_help_panel=OUTPUT,
)
FORCE = typer.Option("--force", help="write into a folder that holds files", rich_help_panel=OUTPUT)
OUT = typer.Option("--out", help="study folder; give it again to continue", rich_help_panel=OUTPUT)
FORMAT = typer.Option(
    "--format",
    help="also print markdown, csv or latex",
    autocompletion=_completion.one_of(("markdown", "csv", "latex")),
    rich_help_panel=OUTPUT,
)


@dataclass(frozen=True)
class Running:
    """Where the runs of a study are executed."""

    jobs: Annotated[int, JOBS] = 1
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", help="'local', or the address of a Ray cluster", rich_help_panel=RUNNING
        ),
    ] = None
    gpus_per_run: Annotated[
        float,
        typer.Option(
            "--gpus-per-run",
            help="with --ray; 0.5 puts two runs on one GPU",
            rich_help_panel=RUNNING,
        ),
    ] = 0.0
    rerun_changed: Annotated[bool, RERUN] = False


@dataclass(frozen=True)
class Kept:
    """Where a study writes, and what it prints besides its table."""

    out: Annotated[str, OUT]
    keep: Annotated[list[str] | None, KEEP] = None
    table_format: Annotated[str, FORMAT] = ""
    force: Annotated[bool, FORCE] = False


def method_arguments(words: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{'lora': {'r': '16'}} from 'lora:r=16'; without 'lora:' it goes to every method that takes an
    r.

    Raises:
        VituneError: a method that is not compared, or an argument that no method takes.
    """
    from vitune.cli._settings import pairs
    from vitune.errors import VituneError, nearest
    from vitune.methods import get_method

    found: dict[str, dict[str, Any]] = {}
    for word in words:
        method, colon, pair = word.partition(":")
        if not colon or "=" in method:
            method, pair = "", word
        elif method not in methods:
            raise VituneError(
                f"--method-arg: got {word!r} for {method!r}, expected one of --methods. "
                f"{nearest(method, methods)}"
            )
        given = pairs([pair], "--method-arg")
        (name,) = given
        takers = (
            [method] if method else [m for m in methods if name in get_method(m).argument_names()]
        )
        if not takers:
            raise VituneError(
                f"--method-arg: got {name!r}, expected an argument of one of {methods}."
            )
        for taker in takers:
            found.setdefault(taker, {}).update(given)
    return found
