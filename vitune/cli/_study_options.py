"""Options that every verb with a study has, and how method arguments are written."""

from __future__ import annotations

from typing import Any

import typer

KEEP = typer.Option("", "--keep", help="'adapters' keeps those of all final runs")
OVERLAP = typer.Option(
    False, "--allow-overlap", help="accept splits that share images; score with and without"
)
RERUN = typer.Option(
    False, "--rerun-changed", help="repeat runs of other versions or devices"
)
METHOD_ARG = typer.Option(
    None, "--method-arg", metavar="[METHOD:]NAME=VALUE", help="argument of a method, e.g. lora:r=16"
)


def method_arguments(words: list[str], methods: list[str]) -> dict[str, dict[str, Any]]:
    """{'lora': {'r': '16'}} from 'lora:r=16'; without 'lora:' it goes to all that take an r.

    Raises:
        VituneError: a method that is not compared, or an argument that none of them takes.
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
            raise VituneError(f"--method-arg: got {name!r}, expected an argument of {methods}.")
        for taker in takers:
            found.setdefault(taker, {}).update(given)
    return found
