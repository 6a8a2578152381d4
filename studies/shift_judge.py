"""How much a probe of shifted images knows, which decides about shifts, for docs/defaults-log.md.

    python studies/default_ground.py OUT
    python studies/shift_judge.py OUT --tasks location,mnist,sign-digits --seeds 0,1,2

Prints for every task the share that training compares with SHARE_RELEARNT, for several random
draws of the shifts. The images of training and validation are those of seed 0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitune.backbones import load_backbone
from vitune.data import load_splits
from vitune.training.augmenting import SHARE_RELEARNT, TRIED_FROM_ZERO, Judge
from vitune.training.feature_reader import FeatureReader
from vitune.training.probing import solve_probe

BACKBONE = "vitune/vit_micro_patch4_32"


def shares(data: str, seeds: list[int]) -> list[float]:
    """The share of one task for each draw."""
    backbone = load_backbone(BACKBONE, num_classes=2)
    splits = load_splits(data, backbone.preprocessing, seed=0)
    probe = solve_probe(backbone, splits)
    with FeatureReader(backbone.model, backbone.preprocessing, "cpu") as read:
        judges = [Judge(probe, splits, read, seed) for seed in seeds]
        return [judge.share_relearnt(TRIED_FROM_ZERO) for judge in judges]


def main() -> None:
    """One row per task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder with tasks.json")
    parser.add_argument("--tasks", default="")
    parser.add_argument("--seeds", default="0,1,2")
    asked = parser.parse_args()
    tasks = json.loads((asked.out / "tasks.json").read_text())
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    print(f"| task | share (shifted from {SHARE_RELEARNT}) |\n|---|---|")
    for name in asked.tasks.split(",") if asked.tasks else tasks:
        found = ", ".join(f"{share:.2f}" for share in shares(tasks[name]["data"], seeds))
        print(f"| {name} | {found} |", flush=True)


if __name__ == "__main__":
    main()
