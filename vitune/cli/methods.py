"""vitune methods: what can be trained, with exact counts for a backbone."""

from __future__ import annotations

import typer

from vitune.training.config import TrainConfig


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("methods")(methods)


def methods(
    backbone: str = typer.Option(
        TrainConfig.model_fields["backbone"].default, "--backbone", help="counts are for this one"
    ),
    as_json: bool = typer.Option(False, "--json", help="print JSON with all figures"),
    everything: bool = typer.Option(False, "--all", help="PEFT's own methods too"),
) -> None:
    """List the methods with trainable parameters (without head) on a backbone.

    Only the architecture is built; no weights are loaded.
    """
    import json
    from dataclasses import asdict

    from rich.table import Table

    from vitune.cli._progress import console, count
    from vitune.methods.catalogue import catalogue

    rows = catalogue(backbone, foreign=everything)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table(box=None, pad_edge=False, title=f"on {backbone}", title_justify="left")
    for title in ("method", "parameters", "MB", "merges", "source"):
        table.add_column(title, justify="right" if title in ("parameters", "MB") else "left")
    for row in rows:
        table.add_row(
            row.name,
            row.refusal or count(row.num_parameters),
            "" if row.refusal else f"{row.megabytes:.2f}",
            "yes" if row.mergeable else "no",
            row.source,
        )
    console.print(table)
