"""The figures of a speed bench on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from vitune.bench.speed.speed_table import against, remarks, sections
from vitune.cli._progress import console
from vitune.cli._tables import print_columns

SHORT = {"optimiser": "optim.", "/ reference": "/ ref", "merged / plain": "merged",
         "un-merged / plain": "un-merged"}  # fmt: skip
"""Short forms of headings that would not fit in 80 columns."""


def print_speed(result: Mapping[str, Any]) -> None:
    """Print a table of times and one of sizes for every batch and precision."""
    for title, tables in groupby(sections(result), key=lambda section: section.title):
        console.print(title, style="bold")
        for section in tables:
            heads = [SHORT.get(head, head) for head in section.heads]
            print_columns(heads, section.rows, to=console)
            console.print()
    for section in against(result):
        console.print(section.title, style="bold")
        kept = [place for place, head in enumerate(section.heads) if "gets" not in head]
        lines = [[row[place] for place in kept] for row in section.rows]
        print_columns([section.heads[place] for place in kept], lines, to=console)
        for row in section.rows:
            console.print(f"{row[0]}: rlrr has {row[1]}; textbook {row[2]}", style="dim")
        console.print()
    console.print("times in ms; ± is half the distance of the quartiles", style="dim")
    console.print("/ ref: to rlrr-textbook, else to the first method", style="dim")
    for line in remarks(result):
        console.print(line)
