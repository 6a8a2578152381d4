"""vitune audit: what updates and models give away, and whether a backbone can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vitune.cli import _completion, _membership
from vitune.cli._options import (
    DATA,
    MEASURE,
    MODEL,
    NAMES,
    NUMBERS,
    OUTPUT,
    PAIRS,
    PRIVACY,
    TRAINING,
    Verbs,
)

if TYPE_CHECKING:
    from vitune.privacy import LeakRow


def add_to(app: typer.Typer) -> None:
    """Register the verb with its actions."""
    group = Verbs(
        name="audit",
        help="Privacy: attack your own updates and models, check a backbone before you train it.",
        no_args_is_help=True,
    )
    group.command("leak")(leak)
    group.command("membership")(_membership.membership)
    group.command("backbone")(backbone_)
    app.add_typer(group)


def leak(
    data: str = typer.Option(
        ..., "--data", help="your images; one batch plays the victim's", rich_help_panel=DATA
    ),
    method: str = typer.Option(
        ...,
        "--method",
        help="see 'vitune methods'",
        autocompletion=_completion.methods,
        rich_help_panel=MODEL,
    ),
    method_arg: list[str] = typer.Option(
        None, "--method-arg", metavar=PAIRS, help="of the method", rich_help_panel=MODEL
    ),
    backbone: str = typer.Option(
        "vitune/vit_micro_patch4_32",
        help="as for vitune train",
        autocompletion=_completion.backbones,
        rich_help_panel=MODEL,
    ),
    checkpoint: str = typer.Option(None, help="local weights for it", rich_help_panel=MODEL),
    image_size: int = typer.Option(None, help="input size in pixels", rich_help_panel=MODEL),
    random_weights: bool = typer.Option(
        False, "--random-weights", help="no pre-trained weights", rich_help_panel=MODEL
    ),
    head_init: str = typer.Option(
        "linear", help="start of the classifier: linear, zero, ...", rich_help_panel=MODEL
    ),
    attack: list[str] = typer.Option(
        None,
        "--attack",
        metavar=NAMES,
        help="labels, honest, malicious, head; default: all",
        rich_help_panel=MEASURE,
    ),
    batch: list[str] = typer.Option(
        ["1,8,32"], "--batch", metavar=NUMBERS, help="images per update", rich_help_panel=TRAINING
    ),
    local_steps: list[str] = typer.Option(
        ["1"],
        "--local-steps",
        metavar=NUMBERS,
        help="steps a client does before it sends",
        rich_help_panel=TRAINING,
    ),
    lr: float = typer.Option(1e-2, help="of these steps", rich_help_panel=TRAINING),
    seeds: int = typer.Option(1, help="how many batches are drawn", rich_help_panel=MEASURE),
    iterations: int = typer.Option(300, help="of gradient matching", rich_help_panel=MEASURE),
    known_labels: bool = typer.Option(
        True,
        help="matching is told the labels, or reads them off the head",
        rich_help_panel=MEASURE,
    ),
    detail: float = typer.Option(
        None,
        help="share of a patch that scales and biases are to show; default: as fits the batch",
        rich_help_panel=MEASURE,
    ),
    clip: float = typer.Option(None, help="clip the update's norm", rich_help_panel=PRIVACY),
    noise: float = typer.Option(
        0.0, help="Gaussian noise, in units of --clip", rich_help_panel=PRIVACY
    ),
    keep: float = typer.Option(
        1.0, help="send this share of the entries, the largest", rich_help_panel=PRIVACY
    ),
    bits: int = typer.Option(
        None, help="round the entries to so many bits", rich_help_panel=PRIVACY
    ),
    out: str = typer.Option("leak.html", "--out", help="the page", rich_help_panel=OUTPUT),
    force: bool = typer.Option(
        False, "--force", help="overwrite the page and its figures", rich_help_panel=OUTPUT
    ),
) -> None:
    """Recover images from updates of your own method and data.

    Tries what a curious server (labels, honest) and a malicious one (malicious, head) can read
    from one client's update, and prints it beside an attacker who has no update at all. The page
    shows your images: treat it as you treat them.
    """
    from vitune.cli._progress import Counting, console
    from vitune.cli._settings import pairs
    from vitune.cli._words import whole_numbers, words
    from vitune.privacy import (
        ATTACKS,
        Defence,
        LeakSettings,
        MatchSettings,
        check_leak_page,
        write_leak_page,
    )
    from vitune.privacy.leak import audit_leak

    settings = LeakSettings(
        data=data,
        method=method,
        method_args=pairs(method_arg, "--method-arg"),
        backbone=backbone,
        checkpoint=checkpoint,
        image_size=image_size,
        pretrained=not random_weights,
        batches=tuple(whole_numbers(batch, "--batch")),
        local_steps=tuple(whole_numbers(local_steps, "--local-steps")),
        attacks=tuple(words(attack)) or ATTACKS,
        lr=lr,
        head_init=head_init,
        detail=detail,
        seeds=tuple(range(seeds)),
        match=MatchSettings(iterations=iterations, knows_labels=known_labels),
        defence=Defence(clip=clip, noise=noise, keep=keep, bits=bits),
    )
    check_leak_page(out, force=force)
    reading = Counting("reading images")
    try:
        rows, pictures = audit_leak(settings, on_row=_print_row, on_read=reading)
    finally:
        reading.close()
    write_leak_page(out, settings, rows, pictures)
    console.print(f"page: {out}", soft_wrap=True)


def _print_row(row: LeakRow) -> None:
    from vitune.cli._progress import console, percent

    start = (
        f"{row.attack}, batch {row.batch}, local steps {row.local_steps}, seed {row.seed} "
        f"({row.numbers_per_image:,.0f} numbers per image)"
    )
    parts = []
    if row.labels is not None:
        parts.append(f"labels {percent(row.labels)}")
    if row.found is not None and row.without is not None:
        for name, title in (
            ("psnr", "PSNR"), ("ssim", "SSIM"), ("found", "found"),
            ("found_by_features", "by features"), ("patches", "patches"),
        ):  # fmt: skip
            value, blind = getattr(row.found, name), getattr(row.without, name)
            parts.append(f"{title} {value:.2f} ({value - blind:+.2f})")
    if row.clustered is not None:
        parts.append(f"grouped rightly {percent(row.clustered)}")
    console.print(f"{start}: {', '.join(parts) or row.note}", soft_wrap=True)


def backbone_(
    checkpoint: str = typer.Argument(
        ..., help="weights to test: a file for --backbone, or a backbone's name"
    ),
    backbone: str = typer.Option(
        None,
        "--backbone",
        help="architecture of the file",
        autocompletion=_completion.backbones,
        rich_help_panel=MODEL,
    ),
    image_size: int = typer.Option(None, help="input size in pixels", rich_help_panel=MODEL),
    reference: str = typer.Option(
        None,
        "--reference",
        help="what it should be: a name in your list, or a fingerprint",
        rich_help_panel=MEASURE,
    ),
    known: str = typer.Option(
        None,
        "--known",
        help="your list; default: ~/.config/vitune/known-backbones.json",
        rich_help_panel=MEASURE,
    ),
    data: str = typer.Option(
        None,
        "--data",
        help="your labelled images, for attention and clean accuracy",
        rich_help_panel=DATA,
    ),
    remember: str = typer.Option(
        None,
        "--remember",
        metavar="NAME",
        help="add its fingerprint to your list",
        rich_help_panel=OUTPUT,
    ),
) -> None:
    """Test a backbone that somebody gave you before you train on it.

    Compares its fingerprint with your own list, and looks for traces of tampering in weights,
    norms, attention and accuracy. Exit code 1 if any test saw something.
    """
    from vitune.cli._progress import console
    from vitune.cli._tables import print_columns
    from vitune.privacy import attest_checkpoint

    found = attest_checkpoint(
        checkpoint, backbone=backbone, image_size=image_size, reference=reference, known=known,
        data=data, name=remember,
    )  # fmt: skip
    lines = [
        (one.test, ("ok" if one.looked else "-") if one.passed else "SUSPICIOUS", one.saw)
        for one in found.findings
    ]
    print_columns(("test", "", "saw"), lines, num_names=3)
    if not found.passed:
        console.print("Do not train on this backbone before you know why.")
        raise typer.Exit(1)
    console.print(
        "No test saw anything. That is no proof: only a fingerprint from another source is.",
        soft_wrap=True,
    )
