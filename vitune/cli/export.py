"""vitune export: a trained run as a file for another runtime."""

from __future__ import annotations

import typer

from vitune.cli._options import DATA, MODEL, OUTPUT
from vitune.cli._plugins import with_plugins


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("export")(export)


@with_plugins
def export(
    run: str = typer.Argument(..., help="run folder, adapter, merged model or hf:user/name"),
    out: str = typer.Option(..., "--out", help="new folder for the file", rich_help_panel=OUTPUT),
    to: str = typer.Option("onnx", "--to", help="onnx, pt2 or openvino", rich_help_panel=OUTPUT),
    int8: bool = typer.Option(
        False, "--int8", help="8-bit weights and activations", rich_help_panel=OUTPUT
    ),
    data: str = typer.Option(
        None, "--data", help="images to check on; default: those of the run", rich_help_panel=DATA
    ),
    exits: str = typer.Option(
        "auto", "--exits", help="full: no image leaves early", rich_help_panel=MODEL
    ),
    force: bool = typer.Option(
        False, "--force", help="accept another backbone", rich_help_panel=MODEL
    ),
) -> None:
    """Export a run to ONNX, PT2 or OpenVINO, and check the file in its own runtime.

    The file takes uint8 images that are already resized. It is kept only if it agrees with PyTorch
    on the run's validation images; export.json and README.md say how well. The run.py written with
    it classifies images without vitune.
    """
    from vitune.cli._progress import Counting, console, percent
    from vitune.export import export_run
    from vitune.report import counted

    reading = Counting("reading images")

    def tell(step: str) -> None:
        reading.close()
        console.print(f"{step} ...", style="dim")

    try:
        card = export_run(
            run, out, to=to, int8=int8, data=data, force=force, exits=exits, on_read=reading,
            on_step=tell,
        )  # fmt: skip
    finally:
        reading.close()
    found, num = card["verification"], card["images"]["num_checked"]
    files = ", ".join(f"{out}/{name}" for name in card["graphs"])
    console.print(f"{files}: {card['bytes'] / 1e6:.1f} MB, {card['precision']}", soft_wrap=True)
    console.print(
        f"checked on {counted(num, 'image')}: {percent(found['whole']['top1'])} of the same class "
        f"as in PyTorch, logits differ by {found['whole']['relative']:.0e} of the largest; "
        f"accuracy {percent(found['accuracy'])} (PyTorch {percent(found['pytorch_accuracy'])})",
        soft_wrap=True,
    )
    for row in card["latency"]:
        console.print(
            f"batch {row['batch']}: {row['exported_ms']:.1f} ms (PyTorch {row['pytorch_ms']:.1f})"
        )
    console.print(f"Next: python {out}/run.py photo.jpg", soft_wrap=True)
