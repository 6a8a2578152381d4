"""vitune exits: let easy images leave a network early, with a certified risk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vitune.cli._options import DATA, IMAGE_GROUPS, MODEL, OUTPUT, RUNNING, TRAINING, Verbs

if TYPE_CHECKING:
    from vitune.exits import Thresholds


def add_to(app: typer.Typer) -> None:
    """Register the command and its two subcommands."""
    group = Verbs(
        name="exits",
        help="Add early exits to a finished run, and calibrate when images leave.",
        no_args_is_help=True,
    )
    group.command("add")(add)
    group.command("calibrate")(calibrate)
    app.add_typer(group)


def add(
    run: str = typer.Argument(..., help="finished run folder"),
    at: str = typer.Option(
        ...,
        "--at",
        help="place an exit after each of these blocks, e.g. 4,7,10",
        rich_help_panel=MODEL,
    ),
    out: str = typer.Option(
        ..., "--out", help="new run folder: the run with its exits", rich_help_panel=OUTPUT
    ),
    data: str = typer.Option(
        None, "--data", help="training images; default: those of the run", rich_help_panel=DATA
    ),
    epochs: int = typer.Option(100, help="passes over the features", rich_help_panel=TRAINING),
    rank: int = typer.Option(
        32, help="rank of the adapters that the exits share", rich_help_panel=MODEL
    ),
    lr: float = typer.Option(1e-3, help="peak learning rate", rich_help_panel=TRAINING),
    distil: float = typer.Option(
        0.5, help="share of self-distillation in the loss", rich_help_panel=TRAINING
    ),
    graph: float = typer.Option(
        0.0, help="weight of the graph term (vitune.objectives)", rich_help_panel=TRAINING
    ),
    seed: int = typer.Option(
        0, help="seed of the initial exits and the image order", rich_help_panel=TRAINING
    ),
    device: str = typer.Option("auto", help="auto, cpu or cuda", rich_help_panel=RUNNING),
) -> None:
    """Train exits on a finished run; its network does not change."""
    from vitune.cli._progress import Counting, console, percent
    from vitune.exits import ExitRecipe, parse_places
    from vitune.inference import add_exits

    reading, training = Counting("reading images"), Counting("training exits")
    recipe = ExitRecipe(rank=rank, epochs=epochs, lr=lr, distil=distil, graph=graph, seed=seed)
    try:
        record = add_exits(
            run, parse_places(at), out, data,
            recipe=recipe, device=device, on_read=reading, on_train=training,
        )  # fmt: skip
    finally:
        reading.close()
        training.close()
    console.print(
        f"exits after {', '.join(map(str, record['after']))} of {record['depth']} blocks, "
        f"{record['num_parameters']:,} parameters, {record['num_train']:,} images"
    )
    if "val_accuracy" in record:
        names = [*(f"exit {after}" for after in record["after"]), "last"]
        scores = zip(names, record["val_accuracy"], strict=True)
        shown = ", ".join(f"{name} {percent(score)}" for name, score in scores)
        where = "validation accuracy"
        if record["val_was_trained_on"]:
            where = "accuracy on images that trained the network, but not the exits"
        console.print(f"{where}: {shown}")
    console.print(
        f"Next, on images not used for training: vitune exits calibrate {out} --data held_out/ "
        "--risk 0.02",
        soft_wrap=True,
    )


def calibrate(
    run: str = typer.Argument(..., help="run folder with exits"),
    data: str = typer.Option(
        ..., "--data", help="labelled images that were not used for training", rich_help_panel=DATA
    ),
    split: str = typer.Option(
        None, "--split", help="default: test, or all where there is none", rich_help_panel=DATA
    ),
    risk: float = typer.Option(
        None,
        "--risk",
        help="share of images that may leave with a wrong answer",
        rich_help_panel=MODEL,
    ),
    delta: float = typer.Option(
        0.05, "--delta", help="probability that the certificate is wrong", rich_help_panel=MODEL
    ),
    of: str = typer.Option(
        "disagreement", "--of", help="disagreement or error-gap", rich_help_panel=MODEL
    ),
    budget: float = typer.Option(
        None,
        "--budget",
        help="target mean cost instead of a risk, e.g. 0.6 of full",
        rich_help_panel=MODEL,
    ),
    groups: str = typer.Option(None, "--groups", help=IMAGE_GROUPS, rich_help_panel=DATA),
    skip_seen: bool = typer.Option(
        False, "--skip-seen", help="leave out images seen before", rich_help_panel=DATA
    ),
    device: str = typer.Option("auto", help="auto, cpu or cuda", rich_help_panel=RUNNING),
) -> None:
    """Choose when images leave, with a certificate.

    With probability 1 - DELTA, at most a share RISK of images leaves with a wrong answer. The
    certificate is for independent images: of images in groups, one of each is used.
    """
    from vitune.cli._progress import Counting, console
    from vitune.exits import images_needed
    from vitune.inference import calibrate_exits

    if risk is not None:
        needed = images_needed(risk, delta)
        console.print(
            f"a risk of {risk:g} at delta {delta:g} needs at least {needed:,} images, "
            f"{images_needed(risk, delta, 1):,} with one error, "
            f"{images_needed(risk, delta, 5):,} with five",
            soft_wrap=True,
        )
    reading = Counting("reading images")
    try:
        found = calibrate_exits(
            run, data, split=split, risk=risk, delta=delta, definition=of, budget=budget,
            groups=groups, skip_seen=skip_seen, device=device, on_read=reading,
        )  # fmt: skip
    finally:
        reading.close()
    for line in described(found):
        console.print(line, soft_wrap=True)


def described(found: Thresholds) -> list[str]:
    """The thresholds and the certificate as sentences."""
    from vitune.cli._progress import percent

    lines = []
    if found.certificate is not None:
        proof = found.certificate
        if all(value > 1 for value in found.values):
            lines.append(
                f"certificate: no image leaves early; not even the most confident pass the "
                f"test for a risk of {proof.risk:g}. Add images, or allow more risk."
            )
        else:
            meaning = {
                "disagreement": "leave early with a class other than the last exit's",
                "error-gap": "leave early with a wrong class although the last exit is right",
            }[proof.definition]
            lines.append(
                f"certificate: at most {percent(proof.risk)} of images like these {meaning}, with "
                f"probability {percent(1 - proof.delta)} "
                f"({proof.num_errors} of {proof.num_images:,} did)"
            )
    else:
        lines.append(f"thresholds for a mean cost of {found.budget:g}: their risk is not certified")
    for after, value in zip(found.after, found.values, strict=True):
        rule = "no image leaves" if value > 1 else f"confidence {value:.4f} and above"
        lines.append(f"exit after {after} blocks: {rule}")
    seen = found.expected
    names = [*(f"exit {after}" for after in found.after), "last"]
    shares = ", ".join(f"{n} {percent(s)}" for n, s in zip(names, seen["shares"], strict=True))
    lines.append(f"on these images: {shares}; mean cost {percent(seen['cost'])} of full")
    return lines
