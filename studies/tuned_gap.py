"""Untouched defaults, and `--tune` within a time limit, against rates tuned for each task.

    python studies/default_ground.py OUT
    python studies/default_rates.py OUT --starts default --methods rlrr,lora,ssf,hta,full
    python studies/default_rates.py OUT --starts plain --augments none,shift --epochs 5,10 \
        --methods rlrr,lora,ssf,hta --rates 1e-3,3e-3,1e-2,3e-2
    python studies/default_rates.py OUT --starts plain --augments none,shift --epochs 5,10 \
        --methods full --rates 1e-4,3e-4,1e-3,3e-3
    python studies/tuned_gap.py OUT --tune 10m --grid 16 --tasks tiny-10,textures

Tuned: of the runs with a given rate and at most `--epochs` epochs, the one with the highest
validation accuracy, ties by calibrated validation loss. A cell with fewer than `--grid` runs is
left out. With `--tune`, each task and seed gets one search; its result is a line of
OUT/tuned.jsonl, and a search that is there already is not run again. It is compared with the tuned
run of the best method, chosen on validation as well. Test images are scored after training and
choose nothing.

A third table leaves one task out: the rate and length of a task are those with the highest
validation accuracy in the mean of the *other* tasks, so it says what one fixed default would cost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from default_table import is_untouched

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
    """(untouched run of `epochs`, no longer runs with a given rate) per task, method and seed."""
    untouched: dict[Cell, Run] = {}
    given: dict[Cell, list[Run]] = defaultdict(list)
    for run in runs:
        cell = (run["task"], run["method"], run["seed"])
        if run["lr"] is not None and run["start"] == "plain":
            given[cell] += [run] if run["epochs"] <= epochs else []
        elif is_untouched(run) and run["method"] != "linear" and run["epochs"] == epochs:
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


def others_choose(given: Mapping[Cell, list[Run]], cell: Cell, cells: list[Cell]) -> Run | None:
    """The run of `cell` at the rate and length that suit the other tasks best.

    How well a setting suits a task is its validation accuracy less the task's highest.
    """
    suits: dict[tuple[float, int], list[float]] = defaultdict(list)
    others = [each for each in cells if each[0] != cell[0]]
    for other in others:
        highest = max(run["val"]["accuracy"] for run in given[other])
        for setting, runs in _by_setting(given[other]).items():
            suits[setting].append(best(runs)["val"]["accuracy"] - highest)
    own = _by_setting(given[cell])
    usable = [s for s in suits if len(suits[s]) == len(others) and s in own]
    if not usable:
        return None
    return best(own[max(usable, key=lambda setting: mean(suits[setting]))])


def _by_setting(runs: Iterable[Run]) -> dict[tuple[float, int], list[Run]]:
    found: dict[tuple[float, int], list[Run]] = defaultdict(list)
    for run in runs:
        found[run["lr"], run["epochs"]].append(run)
    return found


def left_out_table(given: Mapping[Cell, list[Run]], least: int) -> None:
    """What the settings chosen on the other tasks lose against those tuned for the task."""
    whole = [cell for cell in given if len(given[cell]) >= least]
    methods = list(dict.fromkeys(method for _, method, _ in whole))
    print("\n| task left out | " + " | ".join(methods) + " |")
    print("|---|" + "---:|" * len(methods))
    gaps: dict[str, list[float]] = defaultdict(list)
    for task in dict.fromkeys(task for task, _, _ in whole):
        parts = []
        for method in methods:
            cells = [cell for cell in whole if cell[1] == method]
            pairs = [
                (others_choose(given, cell, cells), best(given[cell]))
                for cell in cells
                if cell[0] == task
            ]
            lost = [
                100 * (run["test"]["accuracy"] - tuned["test"]["accuracy"])
                for run, tuned in pairs
                if run is not None
            ]
            gaps[method] += [mean(lost)] if lost else []
            parts.append(f"{mean(lost):+.1f}" if lost else "–")
        print(f"| {task} | {' | '.join(parts)} |")
    print("| mean | " + " | ".join(f"{mean(gaps[m]):+.1f}" if gaps[m] else "–" for m in methods))


def tune_table(found: Iterable[Run], given: Mapping[Cell, list[Run]], least: int) -> None:
    """A search against the best method and rate of the grid.

    "highest" is what the grid would reach if test images could choose.
    """
    print("\n| task | seed | grid's best | test | highest | search chose | test | seconds |")
    print("|---|---:|---|---:|---:|---|---:|---:|")
    gaps = []
    for run in found:
        cells = [c for c in given if (c[0], c[2]) == (run["task"], run["seed"])]
        runs = [each for c in cells if len(given[c]) >= least for each in given[c]]
        if not runs:
            continue
        top, highest = best(runs), max(each["test"]["accuracy"] for each in runs)
        gaps.append(100 * (run["accuracy"] - top["test"]["accuracy"]))
        print(
            f"| {run['task']} | {run['seed']} | {top['method']} {top['lr']:g}, {top['epochs']} ep "
            f"| {100 * top['test']['accuracy']:.1f} | {100 * highest:.1f} "
            f"| {run['method']} {run['lr']:.2g}, {run['epochs']} ep "
            f"| {100 * run['accuracy']:.1f} | {run['seconds']:.0f} |"
        )
    if gaps:
        print(f"\nsearch less grid: {mean(gaps):+.1f} points in the mean of {len(gaps)}")


def lines_of(folders: Iterable[Path], name: str) -> list[Run]:
    """The lines of the files of that name in all folders."""
    files = [folder / name for folder in folders]
    return [json.loads(line) for f in files if f.is_file() for line in f.read_text().splitlines()]


def search_all(out: Path, budget: str, wanted: list[str], seeds: list[int]) -> None:
    """The searches that are not in OUT/tuned.jsonl yet, a line each."""
    tasks = json.loads((out / "tasks.json").read_text())
    done = {(run["task"], run["seed"]) for run in lines_of([out], "tuned.jsonl")}
    for seed, task in itertools.product(seeds, wanted or tasks):
        if (task, seed) in done:
            continue
        run = {"task": task, "seed": seed, "budget": budget}
        run |= searched(tasks[task]["data"], seed, budget)
        with (out / "tuned.jsonl").open("a") as file:
            file.write(json.dumps(run) + "\n")
        print(run, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="+", help="--tune adds to the first")
    parser.add_argument("--tune", default="", help="time limit of each search; empty: none is run")
    parser.add_argument("--tasks", default="")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=10, help="of the untouched runs")
    parser.add_argument("--grid", type=int, default=8, help="runs that a tuned cell must have")
    asked = parser.parse_args()
    if asked.tune:
        seeds = [int(seed) for seed in asked.seeds.split(",")]
        search_all(asked.out[0], asked.tune, [t for t in asked.tasks.split(",") if t], seeds)
    untouched, given = by_cell(lines_of(asked.out, "runs.jsonl"), asked.epochs)
    gap_table(untouched, given, asked.grid)
    left_out_table(given, asked.grid)
    tune_table(lines_of(asked.out, "tuned.jsonl"), given, asked.grid)


if __name__ == "__main__":
    main()
