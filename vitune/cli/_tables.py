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
    """A table without rules: names on the left, figures to the right; every text as it is.

    Args:
        num_names: columns from the left that hold names.
        widest: characters of a column; longer texts are broken. None is as wide as it takes.
        to: where it is printed.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(
            escape(heading.strip()),
            justify="left" if number < num_names else "right",
            overflow="fold",
            max_width=widest,
        )
    for line in lines:
        table.add_row(*map(escape, line))
    to.print(table)
