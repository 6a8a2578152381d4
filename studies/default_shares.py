"""What lies between a solved probe and the network that was trained from it.

    python studies/default_ground.py OUT
    python studies/default_proxies.py OUT
    python studies/default_shares.py OUT --task tiny-10 --method rlrr --augment crop_flip

One run from the probe at the rule's rate, every epoch made. For weights at several places on the
line from the probe (0) to the last epoch (1) it prints the gain in validation cross-entropy at the
best temperature with its standard error, which vitune chooses by, and the test accuracy.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitune.backbones import load_backbone
from vitune.data import Split, load_splits
from vitune.ops import calibrated_losses, paired
from vitune.training import Observer, TrainConfig, fit
from vitune.training.mixing import SHARES, mixed

BACKBONE = "vitune/vit_micro_patch4_32"
NUM_TEST = 1000


class Ends(Observer):
    """Keeps the weights before the first step, and the loop."""

    def started(self, loop: Any) -> None:
        self.loop = loop
        self.first = {name: p.detach().clone() for name, p in loop.parameters.items()}

    def logits(self, weights: dict[str, Tensor], split: Split) -> Tensor:
        """Of all images of a split, with these weights in the model."""
        with torch.no_grad():
            for name, parameter in self.loop.parameters.items():
                parameter.copy_(weights[name])
        self.loop.evaluate(split)
        found: Tensor = self.loop.seen[0]
        return found


def main() -> None:
    """One run, one line per place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--method", default="rlrr")
    parser.add_argument("--augment", default="auto")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    data = json.loads((asked.out / "tasks.json").read_text())[asked.task]["data"]
    splits = load_splits(data, load_backbone(BACKBONE).preprocessing, seed=asked.seed)
    assert splits.val is not None and splits.test is not None
    test = splits.test.subset(range(min(NUM_TEST, len(splits.test))))
    given = {"data": data, "method": asked.method, "epochs": asked.epochs, "seed": asked.seed,
             "augment": asked.augment, "start": "probe", "select": "last",
             "device": "cpu"}  # fmt: skip
    ends = Ends()
    summary = fit(TrainConfig.make(given), splits=replace(splits, test=None), observer=ends).summary
    last = {name: p.detach().clone() for name, p in ends.loop.parameters.items()}
    val_labels, test_labels = (torch.as_tensor(one.labels) for one in (splits.val, test))
    print(f"{asked.task} {asked.method} augment {asked.augment}, rate {summary.lr:g}")
    first: Tensor | None = None
    for share in SHARES:
        weights = mixed(ends.first, last, share)
        losses = calibrated_losses(ends.logits(weights, splits.val), val_labels)
        first = losses if first is None else first
        gain, error = paired(first, losses)
        right = (ends.logits(weights, test).argmax(1) == test_labels).double().mean().item()
        print(f"  {share:4}  gain {gain:+.3f} ± {error:.3f}  test {100 * right:.1f} %")


if __name__ == "__main__":
    main()
