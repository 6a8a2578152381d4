"""Intervals of differences from a table that is printed in a document, its runs being gone.

    python studies/printed_intervals.py docs/demo-suite.md --reference rlrr \\
        --images 2000 --of digits=797
    python studies/printed_intervals.py docs/rlrr.md --reference "both, residual (RLRR)" \\
        --same "paper (kaiming)" RLRR --columns here --images 3000 --image-error 0.46

Every cell "mean ± spread" stands for three runs with that mean and spread. Nothing printed tells
which images a run got right, nor which runs shared a seed: so methods are taken as independent,
and the images' part is p (1 - p) / n of each method, its upper bound, unless a standard error of
the difference over images is known (--image-error, in points; for one column). Intervals are
therefore too wide rather than too narrow.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from scipy.stats import t

from vitune.bench.tables.differences import corrected
from vitune.bench.tables.mixed_model import Difference, Interval, Runs, difference
from vitune.bench.tables.sureness import interval_text, p_text

CELL = re.compile(r"^\**(\d+\.\d+)\** ± (\d+\.\d+)$")
Rows = dict[str, dict[str, Runs]]


def read_rows(text: str, columns: list[str], num_images: Callable[[str], int]) -> Rows:
    """Runs by row name and column, of every table that has the columns (all "a ± b" if none)."""
    found: Rows = {}
    for heads, *lines in _tables(text):
        for line in lines:
            cells = dict(zip(heads, line, strict=False))
            runs = {
                head: _runs(cell, num_images(head))
                for head, cell in list(cells.items())[1:]
                if CELL.match(cell) and (not columns or head in columns)
            }
            if runs:
                found.setdefault(re.sub("[`*]", "", line[0]), {}).update(runs)
    return found


def _tables(text: str) -> Iterator[list[list[str]]]:
    """The Markdown tables of a document, headings first, rules left out."""
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        lines = [
            [cell.strip() for cell in line.strip("| ").split("|")] for line in block.split("\n")
        ]
        yield [line for line in lines if line != [""] and not set("".join(line)) <= set(":- ")]


def _runs(cell: str, num_images: int) -> Runs:
    match = CELL.match(cell)
    assert match is not None
    mean, spread = (float(number) / 100 for number in match.groups())
    return Runs((mean - spread, mean, mean + spread), num_images)


def compare(rows: Rows, reference: str, image_error: float | None) -> list[Difference]:
    """The reference against every other row, over the columns that both have."""
    found = []
    for name, row in rows.items():
        shared = [column for column in rows[reference] if column in row]
        if name == reference or not shared:
            continue
        pairs = [(rows[reference][column], row[column]) for column in shared]
        one = difference(reference, name, pairs)
        if image_error is not None:
            one = replace(one, on_these=_with_error(one.mean, pairs[0], image_error))
        found.append(one)
    return list(corrected(found))


def _with_error(mean: float, pair: tuple[Runs, Runs], image_error: float) -> Interval:
    """Seeds of two independent methods, and a known standard error over images."""
    parts = [statistics.variance(runs.accuracies) / len(runs.accuracies) for runs in pair]
    variance = sum(parts) + image_error**2
    freedom = variance**2 / sum(
        part**2 / (len(runs.accuracies) - 1) for part, runs in zip(parts, pair, strict=True)
    )
    error, student = math.sqrt(variance), t(freedom)
    half = float(student.ppf(0.975)) * error
    p_value = 2 * float(student.sf(abs(mean) / error))
    return Interval(mean - half, mean + half, p_value, freedom, ("seeds", "images"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("document", type=Path)
    parser.add_argument("--reference", required=True, help="name of a row")
    parser.add_argument("--same", nargs="+", default=[], help="rows that are the reference again")
    parser.add_argument("--columns", default="", help="separated by ,; default: all with a spread")
    parser.add_argument("--images", type=int, required=True, help="test images per task")
    parser.add_argument("--of", default="", metavar="TASK=NUMBER", help="where it is another")
    parser.add_argument("--image-error", type=float, help="points")
    given = parser.parse_args()
    other = dict(pair.split("=") for pair in given.of.split(",") if pair)
    rows = read_rows(
        given.document.read_text(),
        [name for name in given.columns.split(",") if name],
        lambda task: int(other.get(task, given.images)),
    )
    rows = {name: row for name, row in rows.items() if name not in given.same}
    error = None if given.image_error is None else given.image_error / 100
    print("| difference | points | these tasks | p | p, Holm | tasks like these |")
    print("|---|---|---|---|---|---|")
    for found in compare(rows, given.reference, error):
        cells = (
            f"{found.first} - {found.second}", f"{100 * found.mean:+.1f}",
            interval_text(found.on_these),
            p_text(None if found.on_these is None else found.on_these.p_value),
            p_text(found.holm_p), interval_text(found.on_others),
        )  # fmt: skip
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
