"""Columns of figures on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vitune.cli._progress import console

if TYPE_CHECKING:
    from rich.console import Console


def print_columns(
    headings: Sequence[str],
    lines: Iterable[Sequence[str]],
    *,
    num_names: int = 1,
    widest: int | None = None,
    to: Console = console,
) -> None:
    """Print a table without rules: names left-aligned, figures right-aligned.

    Args:
        num_names: number of columns from the left that hold names.
        widest: characters per column; longer texts are wrapped. None sets no limit.
        to: where it is printed.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(
            heading.strip(),
            justify="left" if number < num_names else "right",
            overflow="fold",
            max_width=widest,
        )
    for line in lines:
        table.add_row(*line)
    to.print(table)
