"""vitune compare: several methods on the same images, in one table."""

from __future__ import annotations

import typer


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("compare")(compare)


def compare(data: str = typer.Option(..., "--data")) -> None:
    """Train several methods under one protocol and print one table."""
    raise NotImplementedError
