"""How far validation's temperature is off, and how much of that cross-validation corrects.

    python studies/default_ground.py OUT
    python studies/temperature_ratios.py OUT [--seeds 0,1,2]

The calibration error of the solved probe on 1,000 test images at most, mean over the seeds: at the
temperature of validation, at that times the probe's sample ratio, and at the one that is best on
test, which is out of reach. Features are kept in OUT/features-TASK-SEED.npz.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from solved_probes import features

from vitune.methods import SAMPLE_RATIO, HeadProblem, Labelled, get_method
from vitune.ops.temperature import expected_calibration_error, fit_temperature


def errors(found: dict[str, np.ndarray], seed: int) -> tuple[float, float, float] | None:
    """The three calibration errors; None where nothing is cross-validated."""
    classes = int(max(found[f"{name}_labels"].max() for name in ("train", "val", "test"))) + 1
    train, val, test = (
        Labelled(found[name], found[f"{name}_labels"]) for name in ("train", "val", "test")
    )
    config = get_method("linear").configure(torch.nn.Linear(1, 1))
    head = config.solve(HeadProblem(train, val, classes, seed=seed))
    if SAMPLE_RATIO not in head.chosen:
        return None
    logits, labels = head.logits(test.features), torch.from_numpy(test.labels)
    fitted = fit_temperature(head.logits(val.features), torch.from_numpy(val.labels))
    temperatures = (
        fitted, fitted * head.chosen[SAMPLE_RATIO], fit_temperature(logits, labels)
    )  # fmt: skip
    one, two, three = (expected_calibration_error(logits / t, labels) for t in temperatures)
    return one, two, three


def main() -> None:
    """One row per task, then the means and the largest single errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    asked = parser.parse_args()
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    tasks = json.loads((asked.out / "tasks.json").read_text())
    print("| task | validation's | corrected | best on test |\n|---|---:|---:|---:|")
    rows: list[tuple[float, float, float]] = []
    for name, task in tasks.items():
        tried = (errors(features(asked.out, name, task["data"], seed), seed) for seed in seeds)
        found = [row for row in tried if row is not None]
        if found:
            rows += found
            print(f"| {name} | " + " | ".join(f"{x:.3f}" for x in np.mean(found, 0)) + " |")
    print("| mean | " + " | ".join(f"{x:.3f}" for x in np.mean(rows, 0)) + " |")
    print("| largest | " + " | ".join(f"{x:.3f}" for x in np.max(rows, 0)) + " |")


if __name__ == "__main__":
    main()
