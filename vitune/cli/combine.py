"""vitune combine: arithmetic of trained adapters."""

from __future__ import annotations

import typer

from vitune.cli._options import NUMBERS
from vitune.cli._plugins import with_plugins
from vitune.cli._words import numbers


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("combine")(combine)


@with_plugins
def combine(
    adapters: list[str] = typer.Argument(..., help="run folders or adapters of one backbone"),
    weights: list[str] = typer.Option(
        ..., "--weights", metavar=NUMBERS, help="one per adapter, e.g. 0.7,-0.3"
    ),
    how: str = typer.Option("compose", "--how", help="compose keeps the rank; sum adds the ΔW"),
    out: str = typer.Option(..., "--out", help="new folder for the combined adapter"),
) -> None:
    """Combine trained adapters of one method and backbone into one, if the method supports it."""
    from vitune.adapters import combine_adapters
    from vitune.cli._progress import console

    chosen = numbers(weights, "--weights")
    notes = combine_adapters(adapters, chosen, how=how, out=out)
    for note in notes:
        console.print(note, style="yellow", soft_wrap=True)
    console.print(f"combined adapter: {out}", soft_wrap=True)
