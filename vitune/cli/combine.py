"""vitune combine: arithmetic of trained RLRR adapters."""

from __future__ import annotations

import typer


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("combine")(combine)


def join_weights(arguments: list[str]) -> list[str]:
    """`--weights 0.7 -0.3` as one word `--weights=0.7,-0.3`, which an option parser can take."""
    if "--weights" not in arguments:
        return arguments
    start = arguments.index("--weights")
    end = start + 1
    while end < len(arguments) and _is_number(arguments[end]):
        end += 1
    if end == start + 1:
        return arguments
    joined = "--weights=" + ",".join(arguments[start + 1 : end])
    return [*arguments[:start], joined, *arguments[end:]]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def combine(
    adapters: list[str] = typer.Argument(..., help="run folders or adapters of one backbone"),
    weights: str = typer.Option(
        ..., "--weights", help="one number per adapter, e.g. 0.7 0.3; may be negative"
    ),
    how: str = typer.Option("compose", "--how", help="compose keeps the rank; sum adds the ΔW"),
    out: str = typer.Option(..., "--out", help="new folder for the combined adapter"),
) -> None:
    """Combine trained RLRR adapters of one backbone into one adapter (paper, appendix H)."""
    from vitune.adapters import combine_adapters
    from vitune.cli._progress import console
    from vitune.errors import VituneError

    try:
        numbers = [float(word) for word in weights.replace(",", " ").split()]
    except ValueError:
        raise VituneError(f"--weights: got {weights!r}, expected numbers, e.g. 0.7,0.3.") from None
    notes = combine_adapters(adapters, numbers, how=how, out=out)
    for note in notes:
        console.print(note, style="yellow")
    console.print(f"combined adapter: {out}", soft_wrap=True)
