"""vitune push: a trained run on the Hugging Face hub."""

from __future__ import annotations

import typer

from vitune.cli._options import OUTPUT


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("push")(push)


def push(
    run: str = typer.Argument(..., help="run folder, adapter or merged model"),
    name: str = typer.Argument(..., help="repository: user/name"),
    license: str = typer.Option(
        None,
        "--license",
        help="licence of the backbone, e.g. apache-2.0, or unknown  [required]",
        rich_help_panel=OUTPUT,
    ),
    data_license: str = typer.Option(
        None,
        "--data-license",
        help="licence of the images, or unknown  [required]",
        rich_help_panel=OUTPUT,
    ),
    private: bool = typer.Option(
        False, "--private", help="make a new repository private", rich_help_panel=OUTPUT
    ),
) -> None:
    """Push a run to the hub, with a page of its figures and protocol.

    Images, their paths and config.yaml are not uploaded. Log in with 'hf auth login' or HF_TOKEN;
    HF_ENDPOINT names another hub.
    """
    from vitune.cli._progress import console
    from vitune.inference import Licences, push_run

    licences = Licences(license, data_license)
    pushed = push_run(run, name, licences=licences, private=private)
    console.print(f"pushed: {pushed.url}", soft_wrap=True)
    for note in pushed.notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
    console.print(f"Next, anywhere: vitune predict hf:{name.removeprefix('hf:')} images/")
