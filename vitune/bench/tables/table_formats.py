"""A table of a study as plain cells, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitune.bench.study.lost_runs import Lost
from vitune.bench.tables.study_table import Figure, Table, TableRow
from vitune.bench.tables.sureness import difference_text, ranking_text, verdict
from vitune.errors import VituneError, nearest

ABSENT = "–"
ONE_SEED = " (1 seed)"

TEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
)
"""What stands for itself in no LaTeX text."""

CSV_COLUMNS = (
    "label", "method", "protocol", "backbone", "split", "task", "mean", "std", "num_seeds", "seeds",
    "values", "val", "published", "difference", "num_parameters_without_head", "seconds",
    "peak_mib", "rank", "num_diverged", "num_failed", "num_pending",
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """Text cells under headings, ready for any renderer.

    Args:
        headings: one per column; the first is the method's.
        lines: as many cells each; a published line follows the measured one it belongs to.
        notes: sentences below the table.
    """

    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def as_grid(table: Table) -> Grid:
    """Accuracies in percent, mean ± standard deviation, with parameters, seconds and memory."""
    several = len(table.tasks) > 1
    mixed = len({row.backbone for row in table.rows}) > 1
    headings = ["method", "parameters", *table.tasks]
    headings += [f"mean {group}" for group in table.groups]
    headings += [f"mean of {len(table.tasks)} tasks"] if several else []
    headings += [f"mean of {len(table.groups)} groups"] if table.groups else []
    headings += ["rank"] if several and len(table.rows) > 1 else []
    headings += ["seconds", "peak MiB", "NLL", "ECE"]
    lines: list[tuple[str, ...]] = []
    for row in table.rows:
        lines.append(_measured(row, table, several, label_of(row, mixed)))
        if row.published is not None:
            lines += _printed(row, table, several)
    return Grid(tuple(headings), tuple(lines), table.notes)


def label_of(row: TableRow, with_backbone: bool = False) -> str:
    """The row's name, with the protocol unless that is the honest one."""
    parts = [row.label]
    if row.protocol != "honest":
        parts.append(f"[{row.protocol}]")
    if with_backbone:
        parts.append(row.backbone)
    if row.scored_on == "val":
        parts.append("(validation)")
    return " ".join(parts)


def split_text(table: Table) -> str:
    """The images on which an honest table's accuracies were measured."""
    if table.rows[0].scored_on == "test":
        return "test images, opened once per run, after the last epoch"
    return "validation images, because the data has no test split"


def cell_text(row: TableRow, task: str) -> str:
    """A row's cell for a task: its figure, with the number of runs behind it if some have none."""
    figure = row.figures.get(task) or row.survivors.get(task)
    lost = row.lost.get(task)
    if lost is None:
        return figure_text(figure)
    if figure is None:
        return str(lost)
    spread = "" if figure.std is None else f" ± {100 * figure.std:.1f}"
    number = figure.num_seeds + lost.num_ended + lost.num_pending
    return f"{100 * figure.mean:.1f}{spread} ({figure.num_seeds} of {number})"


def figure_text(figure: Figure | None) -> str:
    """Percent: "72.3 ± 0.5", or "72.3 (1 seed)"."""
    if figure is None:
        return ABSENT
    if figure.std is None:
        return f"{100 * figure.mean:.1f}{ONE_SEED}"
    return f"{100 * figure.mean:.1f} ± {100 * figure.std:.1f}"


def markdown(table: Table) -> str:
    """The table, its notes and the tests between methods as Markdown."""
    grid = as_grid(table)
    lines = [_pipes(grid.headings), _pipes(["---"] + ["---:"] * (len(grid.headings) - 1))]
    lines += [_pipes(line) for line in grid.lines]
    if grid.notes:
        lines += ["", *(f"- {note}" for note in grid.notes)]
    if table.differences:
        lines += ["", verdict(table), "", "Differences between methods:", ""]
        lines += [f"- {difference_text(found)}" for found in table.differences]
    if table.ranking is not None:
        lines += ["", ranking_text(table.ranking)]
    return "\n".join(lines) + "\n"


def csv_text(table: Table) -> str:
    """One line per method and task with every number at full precision; then one per mean."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in table.rows:
        start = [row.label, row.method, row.protocol, row.backbone, row.scored_on]
        end = [row.num_parameters, row.seconds, row.peak_mib, row.rank]
        for task in table.tasks:
            cells = [*start, task, *_task_values(row, task), *end, *_lost_values(row, task)]
            if task in row.standings:
                writer.writerow(cells)
        means = {f"mean:{name}": value for name, value in row.group_means.items()}
        means |= {"mean:tasks": row.mean_tasks, "mean:groups": row.mean_groups}
        for name, mean in means.items():
            if mean is not None and len(table.tasks) > 1:
                blank = [None, row.num_seeds, None, None, None, None, None]
                writer.writerow([*start, name, mean, *blank, *end, None, None, None])
    return buffer.getvalue()


def _task_values(row: TableRow, task: str) -> list[object]:
    """From "mean" to "difference"; of the survivors if some runs have no accuracy."""
    figure = row.figures.get(task) or row.survivors.get(task)
    paper = row.published.accuracies.get(task) if row.published else None
    if figure is None:
        return [None, None, 0, None, None, None, paper, None]
    gap = None if paper is None or task not in row.figures else figure.mean - paper
    seeds = ["/".join(map(str, figure.seeds)), "/".join(map(str, figure.values))]
    return [figure.mean, figure.std, figure.num_seeds, *seeds, figure.val, paper, gap]


def _lost_values(row: TableRow, task: str) -> list[int]:
    lost = row.lost.get(task, Lost())
    return [lost.num_diverged, lost.num_failed, lost.num_pending]


def latex(table: Table) -> str:
    """A booktabs table; published lines are in italics."""
    grid = as_grid(table)
    lines = [
        f"\\begin{{tabular}}{{l{'r' * (len(grid.headings) - 1)}}}",
        "\\toprule",
        " & ".join(map(_tex, grid.headings)) + r" \\",
        "\\midrule",
    ]
    for line in grid.lines:
        cells = [_tex(cell) for cell in line]
        if line[0].startswith("  "):
            cells = [f"\\textit{{{cell}}}" if cell else "" for cell in cells]
        lines.append(" & ".join(cells) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"% {' '.join(note.split())}" for note in grid.notes]
    return "\n".join(lines) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    "markdown": markdown,
    "csv": csv_text,
    "latex": latex,
}


def formatted(table: Table, name: str) -> str:
    """The table in one of FORMATS.

    Raises:
        VituneError: unknown format.
    """
    if name not in FORMATS:
        raise VituneError(f"--format: got {name!r}, expected a known one. {nearest(name, FORMATS)}")
    return FORMATS[name](table)


def _measured(row: TableRow, table: Table, several: bool, label: str) -> tuple[str, ...]:
    cells = [label, ABSENT if row.num_parameters is None else f"{row.num_parameters:,}"]
    cells += [cell_text(row, task) for task in table.tasks]
    cells += [_percent(row.group_means[group]) for group in table.groups]
    cells += [_percent(row.mean_tasks)] if several else []
    cells += [_percent(row.mean_groups)] if table.groups else []
    cells += [_number(row.rank, 2)] if several and len(table.rows) > 1 else []
    cells += [_number(row.seconds, 1), _number(row.peak_mib, 0)]
    cells += [_number(row.nll, 3), _number(row.ece, 3)]
    return tuple(cells)


def _printed(row: TableRow, table: Table, several: bool) -> list[tuple[str, ...]]:
    """The paper's line and, below it, measured minus published in points."""
    paper = row.published
    assert paper is not None
    printed = [paper.accuracies.get(task) for task in table.tasks]
    gaps = [
        None if value is None or task not in row.figures else row.figures[task].mean - value
        for task, value in zip(table.tasks, printed, strict=True)
    ]
    by_group = [
        _group_mean([paper.accuracies.get(task) for task in inside])
        for inside in table.groups.values()
    ]
    mean = _group_mean(printed)
    first = [f"  published ({paper.pretraining})", "", *map(_percent, printed)]
    second = ["  difference", "", *map(_signed, gaps)]
    first += map(_percent, by_group)
    second += [
        _signed(_minus(row.group_means[group], value))
        for group, value in zip(table.groups, by_group, strict=True)
    ]
    if several:
        first.append(_percent(mean))
        second.append(_signed(_minus(row.mean_tasks, mean)))
    if table.groups:
        overall = _group_mean(by_group)
        first.append(_percent(overall))
        second.append(_signed(_minus(row.mean_groups, overall)))
    width = len(_measured(row, table, several, ""))
    return [tuple(line + [""] * (width - len(line))) for line in (first, second)]


def _group_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f}"


def _signed(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:+.1f}"


def _number(value: float | None, decimals: int) -> str:
    return ABSENT if value is None else f"{value:.{decimals}f}"


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").strip() for cell in cells) + " |"


def _tex(text: str) -> str:
    return text.translate(TEX).strip().replace(" ± ", " $\\pm$ ").replace(ABSENT, "--")
