"""vitune predict: class names for unlabelled images."""

from __future__ import annotations

import typer

from vitune.cli._options import DATA, MODEL, OUTPUT, RUNNING
from vitune.cli._plugins import with_plugins
from vitune.late_imports import uncollected


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("predict")(predict)


@with_plugins
def predict(
    run: str = typer.Argument(..., help="run folder, adapter or merged model"),
    images: str = typer.Argument(..., help="an image, or a folder searched to any depth"),
    top_k: int = typer.Option(
        1, "--top-k", help="classes per image, most probable first", rich_help_panel=OUTPUT
    ),
    out: str = typer.Option(
        None, "--out", help="CSV file; default: standard output", rich_help_panel=OUTPUT
    ),
    skip_bad_images: bool = typer.Option(
        False, help="skip unreadable images", rich_help_panel=DATA
    ),
    force: bool = typer.Option(
        False,
        "--force",
        help="accept another backbone; overwrite --out",
        rich_help_panel=MODEL,
    ),
    device: str = typer.Option("auto", help="auto, cpu or cuda", rich_help_panel=RUNNING),
    exits: str = typer.Option("auto", help="full: no image leaves early", rich_help_panel=RUNNING),
) -> None:
    """Predict the classes of images as CSV: path, class_1, probability_1, class_2, ...

    The CSV is UTF-8; other bytes in a file name are written as \\xNN.
    """
    from vitune.cli._progress import Counting, console, print_named
    from vitune.files import check_output, is_stream, write_output
    from vitune.report import counted

    with uncollected():
        from vitune import inference
        from vitune.data import CacheSettings, load_unlabelled

    if out is not None:
        check_output(out, force=force)
    loaded = inference.load_run(run, force=force, device=device, exits=exits)
    bar = Counting("reading images")
    settings = CacheSettings(skip_bad_images=skip_bad_images, on_progress=bar)
    split, skipped = load_unlabelled(images, loaded.card.preprocessing, settings=settings)
    bar.close()
    text = inference.predictions_csv(inference.predict(loaded, split, top_k=top_k))
    if skipped:
        told = f"{counted(len(skipped), 'unreadable image')} skipped"
        print_named(told, skipped, to_stderr=True)
    if out is None:
        typer.echo(text, nl=False)
        return
    write_output(out, text, force=force)
    if not is_stream(out):
        console.print(f"{counted(len(split), 'image')}: {out}", soft_wrap=True)
