"""How many validation images of each task look almost like a training image.

    python studies/lookalike_shares.py A/tasks.json,B/tasks.json

prints a line per task. `vitune train` tells the user from a share of 0.30 on; the threshold was set
with these figures in view.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from vitune.backbones import load_backbone
from vitune.data import load_splits
from vitune.methods.core.solved import Labelled
from vitune.training.feature_reader import FeatureReader
from vitune.training.lookalikes import lookalikes


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", help="paths of tasks.json files, with commas between them")
    backbone = load_backbone("vitune/vit_micro_patch4_32")
    tasks = {}
    for path in parser.parse_args().tasks.split(","):
        tasks.update(json.loads(Path(path).read_text()))
    for name, task in tasks.items():
        splits = load_splits(task["data"], backbone.preprocessing, seed=0, include=("train", "val"))
        assert splits.train is not None and splits.val is not None
        with FeatureReader(backbone.model, backbone.preprocessing, "cpu", None) as read:
            train, val = (
                Labelled(np.array(read(split)), np.asarray(split.labels))
                for split in (splits.train, splits.val)
            )
        share, _ = lookalikes(train, val)
        grouped = "" if splits.train.groups is None else ", groups known"
        print(f"{name:20} {share:.2f} of {len(val)} validation images{grouped}", flush=True)


if __name__ == "__main__":
    main()
