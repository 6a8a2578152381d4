"""Accuracy and time of the speed presets by group of tasks, for docs/performance.md.

    vitune bench pareto --suite photos/,demo --methods rlrr,lora,full --seeds 3 --out FRONT
    python studies/presets_by_data.py FRONT photos --one drawn=count,distance

Tasks named first stand alone; `--one NAME=TASK,TASK` makes one row of several. The last rows are
over all tasks. Time is processor seconds of the training steps, relative to `exact`; differences
are taken seed by seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import mean, stdev

from vitune.bench.pareto import EXACT, SPEEDS
from vitune.bench.study.cells import CellResult
from vitune.bench.study.protocol import read_results

Found = dict[tuple[str, str, str, int], CellResult]


def main() -> None:
    """Print one row per group of tasks and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--one", action="append", default=[], metavar="NAME=TASK,TASK")
    asked = parser.parse_args()
    results = read_results(asked.folder)
    found = {(one.task, one.config["method"], one.speed, one.seed): one for one in results}
    groups = {task: [task] for task in asked.tasks}
    for one in asked.one:
        name, _, tasks = one.partition("=")
        groups[name] = tasks.split(",")
    groups["all"] = list(dict.fromkeys(one.task for one in results))
    presets = [speed for speed in SPEEDS if speed != EXACT]
    print(f"| data | method | {EXACT} | {' | '.join(presets)} |")
    print("|---|---|---:|" + "---:|" * len(presets))
    for name, tasks in groups.items():
        for method in dict.fromkeys(key[1] for key in found):
            cells = [exact(found, tasks, method)]
            cells += [against_exact(found, tasks, method, speed) for speed in presets]
            print(f"| {name} | {method} | {' | '.join(cells)} |")


def exact(found: Found, tasks: Sequence[str], method: str) -> str:
    values = [mean(accuracy(found[t, method, EXACT, s]) for t in tasks) for s in seeds(found)]
    return f"{mean(values):.1f} ± {stdev(values):.1f} %"


def against_exact(found: Found, tasks: Sequence[str], method: str, speed: str) -> str:
    differences = [
        mean(
            accuracy(found[task, method, speed, seed]) - accuracy(found[task, method, EXACT, seed])
            for task in tasks
        )
        for seed in seeds(found)
    ]
    own, base = (
        sum(cpu_seconds(found[task, method, name, seed]) for task in tasks for seed in seeds(found))
        for name in (speed, EXACT)
    )
    return f"{mean(differences):+.1f} ± {stdev(differences):.1f}, time {own / base:.2f}"


def seeds(found: Found) -> list[int]:
    return sorted({key[3] for key in found})


def accuracy(result: CellResult) -> float:
    assert result.scores is not None
    return 100 * result.scores.top1


def cpu_seconds(result: CellResult) -> float:
    """Of the training steps."""
    return float(result.curve[-1][1])


if __name__ == "__main__":
    main()
