"""Runs that vitune's default rates are judged by; killed and started again, it goes on.

    python studies/default_ground.py OUT
    python studies/default_rates.py OUT --methods rlrr,lora --rates 1e-3,3e-3 --epochs 10 --seeds 0

Each run is a line of OUT/runs.jsonl; a run that is there already is not run again. Test images
(1,000 at most) are scored after training and never looked at by training or by a choice of epoch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitune.backbones import load_backbone, logits_of
from vitune.data import Split, Splits, batches, load_splits, normalise
from vitune.ops.temperature import calibrated_losses, expected_calibration_error, fit_temperature
from vitune.runs import SolvedFacts
from vitune.training import Observer, TrainConfig, fit
from vitune.training.keeping import Trained
from vitune.training.validating import inference_weights

BACKBONE = "vitune/vit_micro_patch4_32"
NUM_TEST = 1000
KEY = (
    "task", "method", "lr", "head_lr", "epochs", "seed", "start", "augment", "batch_size", "also"
)  # fmt: skip
"""What tells runs of one backbone apart; "also" is one more setting as NAME=VALUE, or None."""


class Curve(Observer):
    """Keeps validation loss and accuracy of every epoch."""

    def __init__(self) -> None:
        self.rows: list[list[float | None]] = []

    def epoch_ended(self, row: dict[str, Any]) -> None:
        self.rows.append([row["train_loss"], row["val_loss"], row["val_accuracy"]])


def scores(trained: Trained, split: Split, temperature: float | None) -> dict[str, Any]:
    """Accuracy, cross-entropy, calibration error and the accuracy of each class.

    The temperature is found where none is given.
    """
    found = []
    with inference_weights(trained.model):
        for batch in batches(split, 250):
            inputs = normalise(batch["images"], trained.backbone.preprocessing)
            found.append(logits_of(trained.model(inputs)).float())
    logits, labels = torch.cat(found), torch.from_numpy(np.asarray(split.labels))
    fitted = fit_temperature(logits, labels) if temperature is None else temperature
    right = logits.argmax(1) == labels
    recalls = labels[right].bincount(minlength=logits.shape[1]) / labels.bincount(
        minlength=logits.shape[1]
    )  # nan: no image of the class
    return {
        "accuracy": right.float().mean().item(),
        "loss": torch.nn.functional.cross_entropy(logits, labels).item(),
        "calibrated": calibrated_losses(logits, labels).mean().item(),
        "ece": expected_calibration_error(logits, labels),
        "ece_tempered": expected_calibration_error(logits / fitted, labels),
        "temperature": fitted,
        "recalls": recalls.tolist(),
    }


def _dict(part: SolvedFacts | None) -> dict[str, Any] | None:
    return None if part is None else asdict(part)


def run_one(
    cell: dict[str, Any], data: str, splits: Splits, backbone: str = BACKBONE
) -> dict[str, Any]:
    """One run from its description to its scores."""
    curve, started = Curve(), time.time()
    given = {key: value for key, value in cell.items() if value is not None}
    given.pop("task")
    setting, _, value = given.pop("also", "").partition("=")
    given |= {setting: value} if setting else {}
    config = TrainConfig.make({**given, "data": data, "backbone": backbone, "device": "cpu"})
    assert splits.val is not None and splits.test is not None
    trained = fit(config, splits=replace(splits, test=None), observer=curve)
    val = scores(trained, splits.val, None)
    assert trained.summary.calibration is not None
    test = splits.test.subset(range(min(NUM_TEST, len(splits.test))))
    summary = trained.summary
    return {
        **cell,
        "used": {"lr": summary.lr, "head_lr": summary.head_lr},
        "reported": asdict(summary.reported),
        "share": summary.share,
        "chosen": summary.chosen,
        "probe": _dict(summary.probe),
        "verdict": None if summary.verdict is None else summary.verdict.as_dict(),
        "solved": _dict(summary.solved),
        "val": val,
        "test": scores(trained, test, summary.calibration.temperature),
        "curve": curve.rows,
        "num_train": summary.num_train,
        "num_val": summary.num_val,
        "num_classes": summary.num_classes,
        "seconds": time.time() - started,
    }


def main() -> None:
    """Run what is not there yet, task by task, so that images are decoded once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--backbone", default=BACKBONE, help="another one: another OUT")
    parser.add_argument("--tasks", default="")
    parser.add_argument("--methods", default="rlrr")
    parser.add_argument("--rates", default="", help="empty: the rule's")
    parser.add_argument("--head-factors", default="1", help="head rate over rate")
    parser.add_argument("--epochs", default="10")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--starts", default="probe")
    parser.add_argument("--augments", default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--also", default="", help="settings, each alone: ema=0.99,...")
    asked = parser.parse_args()
    tasks = json.loads((asked.out / "tasks.json").read_text())
    path = asked.out / "runs.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    done = {tuple(json.loads(line).get(key) for key in KEY) for line in lines}
    names = asked.tasks.split(",") if asked.tasks else list(tasks)
    rates = [float(rate) for rate in asked.rates.split(",") if rate] or [None]
    preprocessing = load_backbone(asked.backbone).preprocessing
    for name, seed in itertools.product(names, map(int, asked.seeds.split(","))):
        splits = None
        for method, epochs, rate, factor, start, augment, also in itertools.product(
            asked.methods.split(","),
            map(int, asked.epochs.split(",")),
            rates,
            map(float, asked.head_factors.split(",")),
            asked.starts.split(","),
            asked.augments.split(","),
            asked.also.split(","),
        ):
            solved = method in ("linear", "ncm")
            cell = {
                "task": name,
                "method": method,
                "lr": None if solved else rate,
                "head_lr": None if solved or rate is None else rate * factor,
                "epochs": epochs,
                "seed": seed,
                "start": None if solved or start == "default" else start,
                "augment": None if solved or augment == "auto" else augment,
                "batch_size": asked.batch_size,
                "also": also or None,
            }
            if tuple(cell[key] for key in KEY) in done:
                continue
            data = tasks[name]["data"]
            splits = splits or load_splits(data, preprocessing, seed=seed)
            result = run_one(cell, data, splits, asked.backbone)
            done.add(tuple(cell[key] for key in KEY))
            with path.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(
                f"{name:12} {method:8} lr {rate} x{factor:g} e{epochs} s{seed} {start} {augment} "
                f"{also}: val {100 * result['val']['accuracy']:.1f} test "
                f"{100 * result['test']['accuracy']:.1f} ece {result['test']['ece_tempered']:.3f} "
                f"{result['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
