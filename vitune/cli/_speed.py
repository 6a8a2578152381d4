"""The figures of a speed bench on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table as Drawn

from vitune.bench.speed_table import remarks, sections
from vitune.cli._progress import console

SHORT = {"optimiser": "optim.", "/ reference": "/ ref", "merged / plain": "merged",
         "un-merged / plain": "un-merged"}  # fmt: skip
"""Heads that would not fit beside the others in 80 columns."""


def print_speed(result: Mapping[str, Any]) -> None:
    """A table of times and one of sizes for every batch and precision."""
    title = ""
    for section in sections(result):
        if section.title != title:
            title = section.title
            console.print(f"[bold]{title}[/]")
        drawn = Drawn(box=None, pad_edge=False)
        for head in section.heads:
            is_name = head == "method"
            drawn.add_column(
                SHORT.get(head, head),
                justify="left" if is_name else "right",
                overflow="fold",
                no_wrap=not is_name,
            )
        for row in section.rows:
            drawn.add_row(*row)
        console.print(drawn, "")
    console.print("times in ms; ± is half the distance of the quartiles", style="dim")
    if any("/ reference" in section.heads for section in sections(result)):
        console.print("/ ref: to rlrr-textbook, else to the first method", style="dim")
    for line in remarks(result):
        console.print(line, markup=False)
