"""vitune rebalance: answers for classes that are otherwise common than in training."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from vitune.cli._options import DATA, MODEL, OUTPUT, RUNNING
from vitune.cli._plugins import with_plugins

SHARES = "CLASS=NUMBER,..."


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("rebalance")(rebalance)


@with_plugins
def rebalance(
    run: str = typer.Argument(..., help="run folder, or an adapter in one"),
    out: str = typer.Option(
        ...,
        "--out",
        help="new folder for the adapter, e.g. RUN/rebalanced",
        rich_help_panel=OUTPUT,
    ),
    shares: list[str] = typer.Option(
        [],
        "--shares",
        metavar=SHARES,
        help="how common the classes will be, in any units, or a .csv file of class and number; "
        "default: all alike",
        rich_help_panel=DATA,
    ),
    force: bool = typer.Option(
        False, "--force", help="accept another backbone", rich_help_panel=MODEL
    ),
    device: str = typer.Option("auto", help="auto, cpu or cuda", rich_help_panel=RUNNING),
) -> None:
    """Make a run answer for classes that are more or less common than in its training images.

    A classifier that saw few images of a class seldom answers with it. By default all classes are
    made equally likely, which raises the mean accuracy per class and lowers the accuracy on images
    like the training images. Only the classifier's bias changes; nothing is trained.
    """
    from vitune.cli._progress import Counting, console, percent
    from vitune.late_imports import uncollected
    from vitune.report import counted

    with uncollected():
        from vitune.inference import rebalance_run

    reading = Counting("reading images")
    try:
        done = rebalance_run(run, out, _shares(shares), force=force, device=device, on_read=reading)
    finally:
        reading.close()
    counts = sorted(zip(done.num_trained, done.classes, strict=True))
    (fewest, rare), (most, common) = counts[0], counts[-1]
    console.print(
        f"trained on {counted(fewest, 'image')} of {rare!r} to {most:,} of {common!r}",
        soft_wrap=True,
    )
    if done.before is None or done.after is None:
        console.print(
            f"not tried on validation images: {done.note}", style="yellow", soft_wrap=True
        )
    else:
        aim = "at these shares" if shares else "mean per class"
        console.print(
            f"on {counted(done.num_val, 'validation image')}: {aim} "
            f"{percent(done.before.at_shares)} -> {percent(done.after.at_shares)}, accuracy "
            f"{percent(done.before.plain)} -> {percent(done.after.plain)}",
            soft_wrap=True,
        )
    console.print(f"rebalanced adapter: {out}", soft_wrap=True)


def _shares(given: Sequence[str]) -> dict[str, float] | None:
    """The numbers by class; None if none are given.

    Raises:
        VituneError: not CLASS=NUMBER, a class given twice, or a file that is no table of both.
    """
    import csv
    from pathlib import Path

    from vitune.cli._words import share_words
    from vitune.errors import VituneError

    if not given:
        return None
    if len(given) == 1 and Path(given[0]).is_file():
        try:
            with Path(given[0]).open(newline="", encoding="utf-8-sig") as file:
                pairs = [(row[0], row[-1]) for row in csv.reader(file) if len(row) > 1]
        except (UnicodeDecodeError, csv.Error) as error:
            raise VituneError(
                f"--shares: got {given[0]!r}, expected a .csv file in UTF-8: {error}."
            ) from None
        if not pairs:
            raise VituneError(
                f"--shares: got {given[0]!r} without a comma in it, expected a class and a number "
                "on each line."
            )
        if not _is_number(pairs[0][1]):
            del pairs[0]  # the names of the columns
    else:
        words = (word.rpartition("=") for word in share_words(given))
        pairs = [(name, value) for name, _, value in words]
    found: dict[str, float] = {}
    for name, value in pairs:
        if not name or not _is_number(value):
            raise VituneError(
                f"--shares: got {f'{name}={value}' if name else value!r}, expected CLASS=NUMBER, "
                "or a .csv file with a class and a number on each line."
            )
        if name in found:
            raise VituneError(f"--shares: got {name!r} twice, expected each class once.")
        found[name] = float(value)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
