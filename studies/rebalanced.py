"""What `vitune rebalance` does to runs on uneven classes.

    python studies/uneven_ground.py OUT --from OLD/tasks.json,FRESH/tasks.json --tasks ...
    python studies/rebalanced.py OUT --methods linear,rlrr --epochs 10 --seeds 0

trains on every `NAME-uneven` task, every setting left to vitune, rebalances the run and scores
both on the test images, of which each class has as many. Prints, before and after, the mean over
classes and the accuracy on images as uneven as the training images (the classes' accuracies
weighted by their share there), and keeps each run's line in OUT/rebalanced.jsonl; a run that is
there is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from vitune.inference import evaluate_run, rebalance_run
from vitune.training import fit

KEY = ("task", "method", "epochs", "seed")


def scored(path: Path, num_trained: tuple[int, ...], data: str) -> dict[str, float]:
    """Both accuracies, the cross-entropy and the calibration error on the test images."""
    result = evaluate_run(path, data, split="test")
    recalls = [entry["recall"] for entry in result["per_class"]]
    uneven = sum(n * recall for n, recall in zip(num_trained, recalls, strict=True))
    return {
        "even": result["mean_per_class"],
        "uneven": uneven / sum(num_trained),
        "worst": min(recalls),
        "nll": result["nll"],
        "ece": result["ece"],
    }


def run_one(cell: dict[str, Any], data: str) -> dict[str, Any]:
    """One run, its scores, and those after rebalancing."""
    settings = {name: value for name, value in cell.items() if name != "task"}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        fit(data=data, backbone="vitune/vit_micro_patch4_32", out=run, device="cpu", **settings)
        done = rebalance_run(run, run / "rebalanced")
        counts = done.num_trained
        return {
            **cell,
            "before": scored(run, counts, data),
            "after": scored(run / "rebalanced", counts, data),
        }


def main() -> None:
    """Run what is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", default="linear,rlrr")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", default="0")
    asked = parser.parse_args()
    tasks = json.loads((asked.out / "tasks.json").read_text())
    path = asked.out / "rebalanced.jsonl"
    runs = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    done = {tuple(run[key] for key in KEY) for run in runs}
    for task, seed, method in itertools.product(
        tasks, map(int, asked.seeds.split(",")), asked.methods.split(",")
    ):
        cell = {"task": task, "method": method, "epochs": asked.epochs, "seed": seed}
        if tasks[task]["kind"] == "uneven" and tuple(cell.values()) not in done:
            runs.append(run_one(cell, tasks[task]["data"]))
            with path.open("a") as file:
                file.write(json.dumps(runs[-1]) + "\n")
    print("| task | method | seed | mean per class | as in training | worst class | NLL | ECE |")
    print("|---|---|---:|---|---|---|---|---|")
    for run in runs:
        pairs = [(run["before"][name], run["after"][name]) for name in run["before"]]
        shares = [f"{100 * a:.1f} -> {100 * b:.1f}" for a, b in pairs[:3]]
        others = [f"{a:.2f} -> {b:.2f}" for a, b in pairs[3:]]
        print(
            "|", " | ".join([run["task"], run["method"], str(run["seed"]), *shares, *others]), "|"
        )


if __name__ == "__main__":
    main()
