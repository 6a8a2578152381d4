"""vitune merge: fold an adapter into the backbone's weights."""

from __future__ import annotations

import typer

from vitune.cli._plugins import with_plugins


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("merge")(merge)


@with_plugins
def merge(
    run: str = typer.Argument(..., help="run folder or adapter"),
    out: str = typer.Option(..., "--out", help="new folder for the merged model"),
    force: bool = typer.Option(False, "--force", help="accept another backbone"),
) -> None:
    """Merge a trained adapter into the backbone; inference then costs nothing extra.

    Writes model.safetensors with the backbone's parameter names, and vitune.json. Merged and
    un-merged logits are compared on random images before anything is written.
    """
    from pathlib import Path

    from vitune.cards import AdapterCard
    from vitune.cli._progress import console
    from vitune.exits import ExitsFolder
    from vitune.fewer_tokens import TokenPlan
    from vitune.inference import merge_and_tell
    from vitune.report import counted

    merged = merge_and_tell(run, out, force=force)
    written = Path(out) / "model.safetensors"
    console.print(
        f"merged: {written} (logits differ by {merged.difference:.0e} of the largest)",
        soft_wrap=True,
    )
    if merged.added_biases:
        first, number = merged.added_biases[0], len(merged.added_biases)
        console.print(
            f"{counted(number, 'layer')} without a bias got one (the first: {first}): vitune loads "
            "these weights, other libraries need layers with a bias there",
            soft_wrap=True,
        )
    if ExitsFolder(Path(run)).record.is_file():
        console.print(f"its exits are not merged: {run} itself runs with them", soft_wrap=True)
    tokens = AdapterCard.read(out).tokens
    if TokenPlan.parse(tokens).in_inference:
        console.print(
            f"only vitune merges its tokens ({tokens}): with these weights other libraries keep "
            "every token, which gives other logits",
            soft_wrap=True,
        )
