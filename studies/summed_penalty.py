"""How much λ · n, which decides where training starts, depends on the images held out.

    python studies/default_ground.py OUT
    python studies/summed_penalty.py OUT [--tasks textures,tiny-10] [--seeds 0,1,2,3,4]

Per task: λ · n at one standard error for each hold-out, once judged by the hold-out alone, once
cross-validated over training and validation images together, as `vitune train` does it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from vitune.backbones import Backbone, load_backbone
from vitune.data import load_splits
from vitune.methods import CAUTIOUS, HeadProblem, Labelled, get_method, linear
from vitune.training.feature_reader import FeatureReader

BACKBONE = "vitune/vit_micro_patch4_32"


def problem_of(backbone: Backbone, data: str, seed: int) -> HeadProblem:
    """The features of the training and validation images of one hold-out."""
    splits = load_splits(data, backbone.preprocessing, seed=seed)
    assert splits.train is not None and splits.val is not None
    with FeatureReader(backbone.model, backbone.preprocessing, "cpu") as read:
        train, val = (Labelled(read(s), s.labels) for s in (splits.train, splits.val))
    return HeadProblem(train, val, len(splits.train.classes), None, seed)


def summed(problem: HeadProblem, enough_held_out: int) -> float:
    """λ · n; the hold-out is judged alone if it has at least `enough_held_out` images."""
    usual, linear.ENOUGH_HELD_OUT = linear.ENOUGH_HELD_OUT, enough_held_out
    try:
        head = get_method("linear").configure(torch.nn.Linear(1, 1)).solve(problem)
    finally:
        linear.ENOUGH_HELD_OUT = usual
    return head.chosen[CAUTIOUS] * len(problem.train)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--tasks", default="")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    asked = parser.parse_args()
    tasks = json.loads((asked.out / "tasks.json").read_text())
    backbone = load_backbone(asked.backbone, num_classes=2)
    print("| task | n | hold-out alone | cross-validated |\n|---|---:|---|---|")
    for name in asked.tasks.split(",") if asked.tasks else tasks:
        seeds = [int(seed) for seed in asked.seeds.split(",")]
        problems = [problem_of(backbone, tasks[name]["data"], seed) for seed in seeds]
        alone, crossed = (
            ", ".join(f"{summed(problem, enough):.3g}" for problem in problems)
            for enough in (0, linear.ENOUGH_HELD_OUT)
        )
        print(f"| {name} | {len(problems[0].train)} | {alone} | {crossed} |", flush=True)


if __name__ == "__main__":
    main()
