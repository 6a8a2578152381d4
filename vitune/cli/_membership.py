"""vitune audit membership: which images trained a run?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vitune.cli import _completion
from vitune.cli._options import DATA, MEASURE, NAMES, OUTPUT, RUNNING
from vitune.cli._plugins import with_plugins
from vitune.errors import InterruptError

if TYPE_CHECKING:
    from vitune.privacy import AttackResult, Estimate, MembershipFound

CLASSES_SHOWN = 12


@with_plugins
def membership(
    run: str = typer.Argument(..., help="finished run folder"),
    data: str = typer.Option(
        None,
        "--data",
        help="images that trained the run; default: all of them",
        rich_help_panel=DATA,
    ),
    others: str = typer.Option(
        None,
        "--others",
        help="images of the same kind that did not; default: test images of the run's data",
        rich_help_panel=DATA,
    ),
    skip_misplaced: bool = typer.Option(
        False,
        "--skip-misplaced",
        help="leave out images of the wrong side instead of refusing them",
        rich_help_panel=DATA,
    ),
    references: int = typer.Option(
        4, "--references", help="runs trained for RMIA; 0: by loss alone", rich_help_panel=MEASURE
    ),
    beside: list[str] = typer.Option(
        ["linear,full"],
        "--beside",
        metavar=NAMES,
        help="methods trained on the same images and attacked too; none: no other",
        autocompletion=_completion.methods,
        rich_help_panel=MEASURE,
    ),
    seed: int = typer.Option(0, help="of the reference runs", rich_help_panel=MEASURE),
    device: str = typer.Option("auto", help="auto, cpu or cuda", rich_help_panel=RUNNING),
    out: str = typer.Option(
        "membership",
        "--out",
        help="folder for the page and the runs; a stopped audit goes on there",
        rich_help_panel=OUTPUT,
    ),
) -> None:
    """Tell from a trained run's answers which images trained it.

    Attacks by loss and, with a few reference runs, by RMIA. Images are told by their content:
    members must have trained the run, others must not. The page names members that stand out.
    """
    from vitune.cli._progress import Counting, console
    from vitune.cli._words import words
    from vitune.privacy import (
        MembershipSettings,
        audit_membership,
        in_words,
        write_membership_page,
    )

    names = words(beside)
    settings = MembershipSettings(
        run=run,
        data=data,
        others=others,
        references=references,
        beside=() if names == ["none"] else tuple(names),
        skip_misplaced=skip_misplaced,
        seed=seed,
        device=device,
        out=out,
    )
    reading, training = Counting("reading images"), Counting("training runs")
    try:
        found = audit_membership(settings, on_read=reading, on_train=training)
    except KeyboardInterrupt:
        again = "Finished runs are kept. Continue with the same command."
        raise InterruptError(f"stopped. {again}") from None
    finally:
        reading.close()
        training.close()
    _print(found)
    console.print(in_words(found), soft_wrap=True)
    for note in found.notes:
        console.print(f"{note}.", style="yellow", soft_wrap=True)
    page = write_membership_page(out, found)
    console.print(f"page: {page}", soft_wrap=True)


def _print(found: MembershipFound) -> None:
    """Both tables, within 80 columns."""
    from vitune.cli._progress import console
    from vitune.cli._tables import print_columns

    references = (
        f"; {found.num_references} reference runs of {found.reference_size:,} images"
        if found.num_references
        else ""
    )
    console.print(
        f"{found.num_members:,} images that trained the run, {found.num_others:,} others"
        f"{references}",
        soft_wrap=True,
    )
    rates = [f"TPR at {100 * rate:g} % FPR" for rate in found.rates]
    print_columns(("model", "attack", "AUC", *rates), map(_line, found.results), num_names=2)
    strongest = found.strongest
    shown = sorted(strongest.per_class, key=lambda row: -(row.auc.value if row.auc else 0.0))
    lines = [
        (
            row.name,
            f"{row.num_members:,}",
            f"{row.num_others:,}",
            _area(row.auc),
            _share(row.caught),
        )
        for row in shown[:CLASSES_SHOWN]
    ]
    console.print(f"\nclass by class, {strongest.attack} on {strongest.model}:")
    headings = ("class", "members", "others", "AUC", "recognised")
    print_columns(headings, lines, widest=24)
    if len(shown) > CLASSES_SHOWN:
        console.print(f"{len(shown) - CLASSES_SHOWN} more classes are on the page")


def _line(row: AttackResult) -> tuple[str, ...]:
    shares = (_share(None if at is None else at.tpr) for at in row.at)
    return (row.model, row.attack, _area(row.auc), *shares)


def _share(one: Estimate | None) -> str:
    """8.1 % (4.4-13.5)."""
    if one is None:
        return "-"
    value, low, high = (
        f"{100 * share:.1f}".replace("100.0", "100") for share in (one.value, one.low, one.high)
    )
    return f"{value} % ({low}-{high})"


def _area(one: Estimate | None) -> str:
    """0.61 (0.57-0.66)."""
    return "-" if one is None else f"{one.value:.2f} ({one.low:.2f}-{one.high:.2f})"
