"""What decides about shifts after a start from zero, for docs/defaults-log.md.

    python studies/default_ground.py OUT
    python studies/shift_judge.py OUT --tasks location,mnist,sign-digits --draws 0,1,2

Prints for every task the share that training compares with SHARE_RELEARNT and the gain from shifted
copies in standard errors, which must exceed CLEARLY where the share is smaller, for several random
draws of the shifts. The images of training and validation are those of --seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitune.backbones import load_backbone
from vitune.data import load_splits
from vitune.training.augmenting import CLEARLY, SHARE_RELEARNT, TRIED_FROM_ZERO, Judge
from vitune.training.feature_reader import FeatureReader
from vitune.training.probing import solve_probe

BACKBONE = "vitune/vit_micro_patch4_32"


def judged(data: str, draws: list[int], seed: int) -> list[tuple[float, float]]:
    """Share, and gain in standard errors, of one task for each draw."""
    backbone = load_backbone(BACKBONE, num_classes=2)
    splits = load_splits(data, backbone.preprocessing, seed=seed)
    probe = solve_probe(backbone, splits)
    found = []
    with FeatureReader(backbone.model, backbone.preprocessing, "cpu") as read:
        for draw in draws:
            judge = Judge(probe, splits, read, draw)
            gain, error = judge.gain_of_copies(TRIED_FROM_ZERO)
            found.append((judge.share_relearnt(TRIED_FROM_ZERO), gain / error))
    return found


def main() -> None:
    """One row per task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder with tasks.json")
    parser.add_argument("--tasks", default="")
    parser.add_argument("--draws", default="0,1,2")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    tasks = json.loads((asked.out / "tasks.json").read_text())
    draws = [int(draw) for draw in asked.draws.split(",")]
    print(f"| task | share (shifted from {SHARE_RELEARNT}) | gain (or above {CLEARLY}) | shifted |")
    print("|---|---|---|---|")
    for name in asked.tasks.split(",") if asked.tasks else tasks:
        found = judged(tasks[name]["data"], draws, asked.seed)
        shares = ", ".join(f"{share:.2f}" for share, _ in found)
        gains = ", ".join(f"{gain:.1f}" for _, gain in found)
        shifted = sum(share >= SHARE_RELEARNT or gain > CLEARLY for share, gain in found)
        print(f"| {name} | {shares} | {gains} | {shifted} of {len(found)} |", flush=True)


if __name__ == "__main__":
    main()
