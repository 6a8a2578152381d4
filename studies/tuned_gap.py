"""Untouched defaults, and `--tune` within a time limit, against rates tuned for each task.

    python studies/default_ground.py OUT
    python studies/default_rates.py OUT --starts default --methods rlrr,lora,ssf,hta,full
    python studies/default_rates.py OUT --starts plain --augments none,shift --epochs 5,10 \
        --methods rlrr,lora,ssf,hta --rates 1e-3,3e-3,1e-2,3e-2
    python studies/default_rates.py OUT --starts plain --augments none,shift --epochs 5,10 \
        --methods full --rates 1e-4,3e-4,1e-3,3e-3
    python studies/tuned_gap.py OUT --tune 10m --grid 16 --tasks tiny-10,textures

Tuned: of the runs with a given rate, the one with the highest validation accuracy, ties by
calibrated validation loss. A cell with fewer than `--grid` runs is left out. With `--tune`, each
task and seed gets one search; its result is a line of OUT/tuned.jsonl, and a search that is there
already is not run again. It is compared with the tuned run of the best method, chosen on validation
as well. Test images are scored after training and choose nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from vitune.data import load_labelled
from vitune.inference import evaluate, load_run
from vitune.training import TrainConfig, Tuning

NUM_TEST = 1000
Run = dict[str, Any]
Cell = tuple[str, str, int]


def best(runs: Iterable[Run]) -> Run:
    """The run that validation would choose."""
    return max(runs, key=lambda run: (run["val"]["accuracy"], -run["val"]["calibrated"]))


def by_cell(runs: Iterable[Run], epochs: int) -> tuple[dict[Cell, Run], dict[Cell, list[Run]]]:
    """(untouched run of `epochs`, runs with a given rate) per task, method and seed."""
    untouched: dict[Cell, Run] = {}
    given: dict[Cell, list[Run]] = defaultdict(list)
    for run in runs:
        cell = (run["task"], run["method"], run["seed"])
        if run["lr"] is not None and run["start"] == "plain":
            given[cell].append(run)
        elif run["start"] is None and run["method"] != "linear" and run["epochs"] == epochs:
            untouched[cell] = run
    return untouched, given


def searched(data: str, seed: int, budget: str) -> Run:
    """One search from the command's own defaults, and what it is worth on test."""
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        config = TrainConfig.make({"data": data, "seed": seed, "device": "cpu"})
        chosen = Tuning.within(budget, config, out).run().summary
        run = load_run(out, device="cpu")
        test, _ = load_labelled(data, run.card.preprocessing, classes=run.classes, split="test")
        test = test.subset(range(min(NUM_TEST, len(test))))
        accuracy = float(evaluate(run, test)["top1"])
    return {
        "method": chosen.method,
        "lr": chosen.lr,
        "epochs": chosen.epochs,
        "accuracy": accuracy,
        "seconds": time.time() - started,
    }


def gap_table(untouched: Mapping[Cell, Run], given: Mapping[Cell, list[Run]], least: int) -> None:
    """Test accuracy of the tuned runs, and the untouched ones less them, in points."""
    methods = list(dict.fromkeys(method for _, method, _ in untouched))
    print(f"| task | {' | '.join(f'{m} tuned | untouched' for m in methods)} |")
    print("|---|" + "---:|---:|" * len(methods))
    gaps: dict[str, list[float]] = defaultdict(list)
    for task in dict.fromkeys(task for task, _, _ in untouched):
        parts = []
        for method in methods:
            cells = [c for c in untouched if c[:2] == (task, method) and len(given[c]) >= least]
            if not cells:
                parts.append("– | –")
                continue
            tuned = mean(100 * best(given[c])["test"]["accuracy"] for c in cells)
            gap = mean(100 * untouched[c]["test"]["accuracy"] for c in cells) - tuned
            gaps[method].append(gap)
            parts.append(f"{tuned:.1f} | {gap:+.1f}")
        print(f"| {task} | {' | '.join(parts)} |")
    for title, summed in (("mean", mean), ("lowest", min)):
        shown = [f"{summed(gaps[m]):+.1f}" if gaps[m] else "–" for m in methods]
        print(f"| {title} | {' | '.join(f'| {value}' for value in shown)} |")


def tune_table(found: Iterable[Run], given: Mapping[Cell, list[Run]], least: int) -> None:
    """A search against the best method and rate of the grid."""
    print("\n| task | seed | grid's best | its test | search chose | its test | seconds |")
    print("|---|---:|---|---:|---|---:|---:|")
    gaps = []
    for run in found:
        cells = [c for c in given if (c[0], c[2]) == (run["task"], run["seed"])]
        runs = [each for c in cells if len(given[c]) >= least for each in given[c]]
        if not runs:
            continue
        top = best(runs)
        gaps.append(100 * (run["accuracy"] - top["test"]["accuracy"]))
        print(
            f"| {run['task']} | {run['seed']} | {top['method']} {top['lr']:g}, {top['epochs']} ep "
            f"| {100 * top['test']['accuracy']:.1f} | {run['method']} {run['lr']:.2g}, "
            f"{run['epochs']} ep | {100 * run['accuracy']:.1f} | {run['seconds']:.0f} |"
        )
    if gaps:
        print(f"\nsearch less grid: {mean(gaps):+.1f} points in the mean of {len(gaps)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tune", default="", help="time limit of each search; empty: none is run")
    parser.add_argument("--tasks", default="")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=10, help="of the untouched runs")
    parser.add_argument("--grid", type=int, default=8, help="runs that a tuned cell must have")
    asked = parser.parse_args()
    tasks = json.loads((asked.out / "tasks.json").read_text())
    path = asked.out / "tuned.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    if asked.tune:
        done = {(run["task"], run["seed"]) for run in found}
        for seed in map(int, asked.seeds.split(",")):
            for task in asked.tasks.split(",") if asked.tasks else tasks:
                if (task, seed) in done:
                    continue
                run = {"task": task, "seed": seed, "budget": asked.tune}
                found.append(run | searched(tasks[task]["data"], seed, asked.tune))
                with path.open("a") as file:
                    file.write(json.dumps(found[-1]) + "\n")
                print(found[-1], flush=True)
    lines = (asked.out / "runs.jsonl").read_text().splitlines()
    untouched, given = by_cell(map(json.loads, lines), asked.epochs)
    gap_table(untouched, given, asked.grid)
    tune_table(found, given, asked.grid)


if __name__ == "__main__":
    main()
