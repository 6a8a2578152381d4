"""Seconds from starting `vitune train` to the end of its first optimiser step, and where they go.

    python studies/first_step.py --runs 7      # on a quiet machine with two cores

Each run is a fresh process that trains on drawn digits and ends after its first step. It is the
command itself, with timestamps at six functions; nothing is imported earlier than the command
imports it. "imports" is everything up to the call of `fit`, "probe" the solved probe that training
starts at, "set up" the adapter, the run folder and the score before the first step. Whatever a
stage imports itself counts as that stage. One run warms up the file cache and is not counted.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

STAGES = (
    ("imports", "vitune.training.fitting", "fit", "called"),
    ("backbone", "vitune.training.ingredients", "_backbone", "returned"),
    ("data", "vitune.training.fitting", "ingredients_of", "returned"),
    ("probe", "vitune.training.stepped_run", "_probe", "returned"),
    ("set up", "vitune.training.loop", "Loop._train", "called"),
    ("first step", "vitune.training.loop", "Loop._step", "returned"),
)
"""Where each stage ends: its name, a function, and whether at the call or the return."""

LAST = STAGES[-1][0]


def trained(arguments: list[str]) -> None:
    """The command with its timestamps on stderr; ends the process after the first step."""
    from vitune.late_imports import after_import

    for module in dict.fromkeys(stage[1] for stage in STAGES):
        after_import(module, lambda module=module: watch(module))  # type: ignore[misc]
    from vitune.cli import main

    main(arguments)


def watch(module: str) -> None:
    """Put timestamps at the functions of a module that was just loaded."""
    for stage, home, name, moment in STAGES:
        if home == module:
            owner: Any = sys.modules[module]
            *outer, name = name.split(".")
            for part in outer:
                owner = getattr(owner, part)
            setattr(owner, name, marked(getattr(owner, name), stage, moment))


def marked(function: Any, stage: str, moment: str) -> Any:
    """The function, followed or preceded by a timestamp."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        if moment == "called":
            mark(stage)
        result = function(*args, **kwargs)
        if moment == "returned":
            mark(stage)
        return result

    return timed


def mark(stage: str) -> None:
    print(f"{stage}={time.monotonic()}", file=sys.stderr, flush=True)
    if stage == LAST:
        os._exit(0)


def measured(arguments: list[str]) -> dict[str, float]:
    """Seconds of each stage of one run, in a fresh process."""
    import subprocess

    command = [sys.executable, __file__, "child", *arguments]
    latest = time.monotonic()  # the same clock in every process
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {}
    for stage, *_ in STAGES:
        lines = [s for s in done.stderr.splitlines() if s.startswith(f"{stage}=")]
        if not lines:
            sys.exit(f"no time of {stage!r}: {done.stderr}")
        now = float(lines[0].partition("=")[2])
        found[stage], latest = now - latest, now
    return found


def main() -> None:
    import argparse
    import statistics
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--data", default="demo:digits")
    parser.add_argument("--method", default="rlrr")
    given = parser.parse_args()
    train = ["train", "--data", given.data, "--method", given.method]
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            measured([*train, "--out", f"{folder}/{number}"]) for number in range(given.runs + 1)
        ][1:]
    print("| run | " + " | ".join(runs[0]) + " | total |\n|---|" + "---:|" * (len(STAGES) + 1))
    rows = [(str(number), list(run.values())) for number, run in enumerate(runs, start=1)]
    medians = [statistics.median(run[stage] for run in runs) for stage in runs[0]]
    for name, seconds in rows:
        cells = " | ".join(f"{value:.2f}" for value in [*seconds, sum(seconds)])
        print(f"| {name} | {cells} |")
    total = statistics.median(sum(run.values()) for run in runs)
    cells = " | ".join(f"{value:.2f}" for value in medians)
    print(f"| median | {cells} | **{total:.2f}** |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        trained(sys.argv[2:])
    else:
        main()
