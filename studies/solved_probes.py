"""The solved probes beside scikit-learn on the same features, and the steps they replace.

    python studies/default_ground.py OUT
    python studies/solved_probes.py OUT [--seeds 0]

Features are taken once per task and hold-out and kept in OUT/features-TASK-SEED.npz. Test accuracy
in percent on 1,000 test images at most; settings are chosen on the hold-out alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vitune.backbones import load_backbone
from vitune.data import load_splits
from vitune.methods import HeadProblem, Labelled, get_method
from vitune.ops.temperature import expected_calibration_error, fit_temperature
from vitune.training.feature_reader import FeatureReader, mirrored

BACKBONE = "vitune/vit_micro_patch4_32"
NUM_TEST = 1000
STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def features(out: Path, name: str, data: str, seed: int) -> dict[str, np.ndarray]:
    """Features and labels of train, its mirror images, val and test."""
    path = out / f"features-{name}-{seed}.npz"
    if not path.is_file():
        backbone = load_backbone(BACKBONE, num_classes=2)
        splits = load_splits(data, backbone.preprocessing, seed=seed)
        assert splits.train is not None and splits.val is not None and splits.test is not None
        test = splits.test.subset(range(min(NUM_TEST, len(splits.test))))
        with FeatureReader(backbone.model, backbone.preprocessing, "cpu") as read:
            found = {
                "train": read(splits.train),
                "flipped": read(splits.train, views=(mirrored,)),
                "val": read(splits.val),
                "test": read(test),
            }
        labels = {"train": splits.train, "val": splits.val, "test": test}
        found |= {f"{key}_labels": np.asarray(split.labels) for key, split in labels.items()}
        np.savez(path, **found)
    return dict(np.load(path))


def scikit_learn(found: dict[str, np.ndarray]) -> tuple[float, float]:
    """Test accuracy at C = 0.03 and at the C that is most accurate on validation."""
    scaler = StandardScaler().fit(found["train"])
    train, val, test = (scaler.transform(found[name]) for name in ("train", "val", "test"))
    models = {
        strength: LogisticRegression(C=strength, max_iter=300).fit(train, found["train_labels"])
        for strength in STRENGTHS
    }
    best = max(models.values(), key=lambda model: model.score(val, found["val_labels"]))
    fixed = models[0.03].score(test, found["test_labels"])
    return 100 * fixed, 100 * best.score(test, found["test_labels"])


def solved(found: dict[str, np.ndarray], method: str, **arguments: Any) -> dict[str, float]:
    """Test accuracy, calibration error at the temperature of validation, and seconds."""
    started = time.perf_counter()
    classes = int(max(found[f"{name}_labels"].max() for name in ("train", "val", "test"))) + 1
    val = Labelled(found["val"], found["val_labels"])
    problem = HeadProblem(Labelled(found["train"], found["train_labels"]), val, classes)
    head = get_method(method).configure(torch.nn.Linear(1, 1), arguments).solve(problem)
    seconds = time.perf_counter() - started
    logits, labels = head.logits(found["test"]), torch.from_numpy(found["test_labels"])
    temperature = fit_temperature(head.logits(found["val"]), torch.from_numpy(val.labels))
    return {
        "accuracy": 100 * float((logits.argmax(1) == labels).double().mean()),
        "ece": expected_calibration_error(logits / temperature, labels),
        "seconds": seconds,
        "images": float(len(problem.train)),
        **head.chosen,
    }


def main() -> None:
    """One row per task and hold-out, then the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0")
    asked = parser.parse_args()
    tasks = json.loads((asked.out / "tasks.json").read_text())
    print("| task | n | linear | ECE | s | λ | ncm | C = 0.03 | C chosen |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    rows = []
    for name, task in tasks.items():
        for seed in map(int, asked.seeds.split(",")):
            found = features(asked.out, name, task["data"], seed)
            linear, ncm = solved(found, "linear"), solved(found, "ncm")
            fixed, chosen = scikit_learn(found)
            rows.append((linear["accuracy"], ncm["accuracy"], fixed, chosen))
            print(
                f"| {name} | {linear['images']:.0f} | {linear['accuracy']:.1f} "
                f"| {linear['ece']:.3f} | {linear['seconds']:.1f} | {linear['penalty']:g} | "
                f"{ncm['accuracy']:.1f} | {fixed:.1f} | {chosen:.1f} |",
                flush=True,
            )
    means = np.mean(rows, 0)
    print(
        f"| mean | | {means[0]:.1f} | | | | {means[1]:.1f} | {means[2]:.1f} | {means[3]:.1f} |"
    )


if __name__ == "__main__":
    main()
