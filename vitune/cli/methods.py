"""vitune methods: the available methods, with exact counts for a backbone."""

from __future__ import annotations

import typer

from vitune.cli import _completion
from vitune.cli._options import MODEL, OUTPUT
from vitune.cli._plugins import with_plugins
from vitune.training.train_config import TrainConfig


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("methods")(methods)


@with_plugins
def methods(
    backbone: str = typer.Option(
        TrainConfig.model_fields["backbone"].default,
        "--backbone",
        help="backbone to count for",
        rich_help_panel=MODEL,
        autocompletion=_completion.backbones,
    ),
    as_json: bool = typer.Option(False, "--json", help="print JSON", rich_help_panel=OUTPUT),
    everything: bool = typer.Option(
        False, "--all", help="include PEFT's own methods", rich_help_panel=OUTPUT
    ),
    flops: bool = typer.Option(
        False, "--flops", help="count extra GFLOPs, which takes longer", rich_help_panel=OUTPUT
    ),
) -> None:
    """List the methods and how many parameters they train on a backbone, without the head.

    Only the architecture is built; no weights are loaded.
    """
    import json

    from rich.table import Table

    from vitune.backbones import load_backbone
    from vitune.cli._progress import console, count
    from vitune.methods import METHODS, OUTSIDE, OWN
    from vitune.methods.catalogue import method_rows

    loaded = load_backbone(backbone, num_classes=10, pretrained=False)
    known = METHODS if everything else {**OWN, **OUTSIDE}
    rows = method_rows(loaded.model, loaded.preprocessing.image_size, known.values(), flops=flops)
    if as_json:
        typer.echo(json.dumps([row.as_dict() for row in rows], indent=2))
        return
    headings = ["method", "parameters", "MB", *(["GFLOPs"] if flops else []), "merges", "source"]
    table = Table(box=None, pad_edge=False)
    for title in headings:
        right = title in ("parameters", "MB", "GFLOPs")
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for row in rows:
        if row.refusal:
            blanks = ["-"] * (len(headings) - 3)
            table.add_row(row.name, *blanks, "", f"refused: {row.refusal.split('.')[0]}")
            continue
        table.add_row(
            row.name,
            "?" if row.num_parameters is None else count(row.num_parameters),
            "?" if row.megabytes is None else f"{row.megabytes:.2f}",
            *(["?" if row.extra_gflops is None else f"{row.extra_gflops:z.3f}"] if flops else []),
            {True: "yes", False: "no", None: ""}[row.mergeable],
            row.paper,
        )
    console.print(table)
    for row in rows:
        if row.notice:
            console.print(row.notice, style="yellow", soft_wrap=True)
    console.print(f"trained parameters without the head, on {backbone}", style="dim")
    if flops:
        console.print("GFLOPs: extra matrix products per image while not merged", style="dim")
