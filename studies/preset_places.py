"""Where the presets of --speed should merge tokens: accuracy on validation images, and time.

    OMP_NUM_THREADS=1 nice -n 10 python studies/preset_places.py OUT.jsonl \
        --data "demo:digits?train=800" ../shared/data/sign-digits --methods rlrr lora --seeds 0 1 2
    python studies/preset_places.py OUT.jsonl --table

Part of the training images is held out, the same for every plan at one seed; the test images are
not even decoded. A run is scored after its last epoch, so nothing is selected but the plan. Each
run is a line of OUT.jsonl; a run that is there already is not repeated, so the command can be
stopped and started again, or extended. Seconds are processor time of the training steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from vitune.backbones import load_backbone
from vitune.data import Splits, load_splits
from vitune.fewer_tokens import TokenPlan
from vitune.training import Observer, TrainConfig, fit

BACKBONE = "vitune/vit_micro_patch4_32"
KEEP = "keep"
PLANS = (
    KEEP, "drop:0.5", "merge:0.5@0", "merge:0.5@1", "merge:0.5", "merge:0.5@all", "merge:0.75@0,1",
    "merge:0.75@0,2", "merge:0.75@1,2", "merge:0.75@all", "merge:0.875@0,1,2",
)  # fmt: skip
KEY = ("data", "method", "tokens", "seed", "epochs", "val_fraction")


class Curve(Observer):
    """Keeps the lines of metrics.jsonl."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def epoch_ended(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def run_one(cell: dict[str, Any], splits: Splits) -> dict[str, Any]:
    """One run from its description to its validation accuracy."""
    curve, started = Curve(), time.time()
    asked = {name: cell[name] for name in ("data", "method", "tokens", "seed", "epochs")}
    config = TrainConfig.make({**asked, "backbone": BACKBONE, "device": "cpu"})
    trained = fit(config, splits=splits, observer=curve)
    return {
        **cell,
        "val_accuracy": curve.rows[-1]["val_accuracy"],
        "cpu_seconds": sum(row["train_cpu_seconds"] for row in curve.rows),
        "curve": [row["val_accuracy"] for row in curve.rows],
        "precision": trained.summary.precision,
        "num_train": trained.summary.num_train,
        "num_val": trained.summary.num_val,
        "seconds": time.time() - started,
    }


def run(file: Path, cells: Sequence[dict[str, Any]]) -> None:
    """Run the cells that are not in the file yet; images are decoded once per data and seed."""
    done = {key_of(cell) for cell in read(file)}
    preprocessing = load_backbone(BACKBONE).preprocessing
    latest: tuple[Any, ...] = ()
    for cell in cells:
        if key_of(cell) in done:
            continue
        wanted = (cell["data"], cell["seed"], cell["val_fraction"])
        if wanted != latest:
            splits = load_splits(
                cell["data"], preprocessing, seed=cell["seed"],
                val_fraction=cell["val_fraction"], include=("train", "val"),
            )  # fmt: skip
            latest = wanted
        found = run_one(cell, splits)
        with file.open("a") as lines:
            lines.write(json.dumps(found) + "\n")
        print(
            f"{cell['data']} {cell['method']} {cell['tokens']} seed {cell['seed']}: "
            f"{100 * found['val_accuracy']:.1f} %, {found['cpu_seconds']:.1f} s", flush=True,
        )  # fmt: skip


def table(cells: Sequence[dict[str, Any]]) -> None:
    """Mean ± standard deviation over seeds; differences and ratios to all tokens, seed by seed."""
    groups: dict[tuple[Any, ...], dict[str, dict[int, dict[str, Any]]]] = defaultdict(dict)
    for cell in cells:
        about = tuple(cell[name] for name in KEY if name not in ("tokens", "seed"))
        groups[about].setdefault(cell["tokens"], {})[cell["seed"]] = cell
    for (data, method, epochs, val_fraction), plans in groups.items():
        print(f"\n{data}, {method}, {epochs} epochs, {val_fraction:g} held out\n")
        print("| tokens | seeds | validation, % | against keep, points | CPU s | ratio |")
        print("|---|---:|---:|---:|---:|---:|")
        exact = plans.get(KEEP, {})
        for tokens, runs in plans.items():
            accuracy = [100 * cell["val_accuracy"] for cell in runs.values()]
            seconds = np.mean([cell["cpu_seconds"] for cell in runs.values()])
            both = [(runs[seed], exact[seed]) for seed in runs if seed in exact]
            gains = [100 * (own["val_accuracy"] - kept["val_accuracy"]) for own, kept in both]
            ratios = [own["cpu_seconds"] / kept["cpu_seconds"] for own, kept in both]
            ratio = f"{np.mean(ratios):.2f}" if ratios else "-"
            print(
                f"| `{tokens}` | {len(runs)} | {spread(accuracy)} | {spread(gains, '+')} | "
                f"{seconds:.1f} | {ratio} |"
            )


def spread(values: Sequence[float], sign: str = "") -> str:
    """The mean, and the standard deviation if there are several values."""
    if not values:
        return "-"
    text = f"{np.mean(values):{sign}.1f}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.1f}"


def read(file: Path) -> list[dict[str, Any]]:
    """The runs so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def key_of(cell: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[name] for name in KEY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", nargs="+", default=["demo:digits?train=800"])
    parser.add_argument("--methods", nargs="+", default=["rlrr", "lora"])
    parser.add_argument("--tokens", nargs="+", default=PLANS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--val-fraction", type=float, default=0.5)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    given = parser.parse_args()
    if not given.table:
        plans = [str(TokenPlan.parse(tokens)) for tokens in given.tokens]
        order = product(given.data, given.seeds, given.methods, plans)
        rest = {"epochs": given.epochs, "val_fraction": given.val_fraction}
        cells = [
            {"data": data, "seed": seed, "method": method, "tokens": tokens, **rest}
            for data, seed, method, tokens in order
        ]
        given.out.parent.mkdir(parents=True, exist_ok=True)
        run(given.out, cells)
    table(read(given.out))


if __name__ == "__main__":
    main()
