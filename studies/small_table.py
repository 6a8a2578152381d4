"""The table of docs/results-small.md: a study's results beside a speed result.

    python studies/small_table.py STUDY_FOLDER SPEED_JSON
"""

from __future__ import annotations

import sys

from vitune.bench.speed.measuring import read_result
from vitune.bench.speed.ratios import step_ratio
from vitune.bench.study.protocol import read_choices, read_results
from vitune.bench.tables.study_table import TableRow, make_table

BASE = "linear"


def main(folder: str, speed_file: str) -> None:
    """Print the rows, the best mean accuracy first."""
    table = make_table(read_results(folder))
    speed = {row["method"]: row for row in read_result(speed_file)["rows"]}
    tasks = list(table.rows[0].figures)
    rates = chosen_rates(folder)
    heads = ["method", "parameters", *tasks, "mean", "step / linear", "MiB", "drift", "lr"]
    print(f"| {' | '.join(heads)} |")
    print("|---|---:|" + "---:|" * (len(tasks) + 5))
    for row in sorted(table.rows, key=lambda row: -row.mean):
        timed = speed.get(row.label)
        accuracies = [
            f"{100 * figure.mean:.1f} ± {100 * (figure.std or 0):.1f}"
            for figure in (row.figures[task] for task in tasks)
        ]
        cells = [
            row.label,
            f"{row.num_parameters:,}",
            *accuracies,
            f"{100 * row.mean:.1f}",
            "–" if timed is None else f"{step_ratio(timed, speed[BASE]):.2f}",
            "–" if timed is None else f"{timed['peak_mib']:.0f}",
            drift(row),
            ", ".join(rates[row.label]),
        ]
        print(f"| {' | '.join(cells)} |")


def drift(row: TableRow) -> str:
    """1 - CKA of the last block, mean over tasks and seeds."""
    return "–" if row.drift is None else f"{row.drift:.3f}"


def chosen_rates(folder: str) -> dict[str, list[str]]:
    """By method, the learning rate chosen on each task."""
    found: dict[str, list[str]] = {}
    for choice in read_choices(folder):
        found.setdefault(choice.label, []).append(f"{choice.setting['lr']:g}")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
