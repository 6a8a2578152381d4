"""What 8 bits cost on images that trained nothing and chose nothing: a run's test split.

    vitune train --data demo:digits --epochs 20 --out digits
    vitune export digits --to onnx --int8 --out digits-int8
    python studies/export_int8.py digits digits-int8

The export itself checks on validation images, of which `demo:digits` has 40; here are 1,597.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from vitune.data import Split, load_labelled
from vitune.export.standalone import Model
from vitune.export.verify import pytorch_answers
from vitune.inference import load_run
from vitune.runs import RunFolder

BATCH = 32


def predicted(folder: Path, split: Split) -> np.ndarray:
    model = Model(folder)
    starts = range(0, len(split), BATCH)
    return np.concatenate([model.logits(split.images[at : at + BATCH]) for at in starts]).argmax(-1)


def main(run: str, *folders: str) -> None:
    loaded = load_run(run, device="cpu", exits="full")
    data = RunFolder(Path(run)).read_data()
    split, _ = load_labelled(data, loaded.card.preprocessing, classes=loaded.classes, split="test")
    own = pytorch_answers(loaded, split.images).logits.argmax(-1)
    print(f"PyTorch: {len(split):,} images, accuracy {100 * (own == split.labels).mean():.2f} %")
    for folder in folders:
        found = predicted(Path(folder), split)
        precision = Model(folder).card["precision"]
        print(
            f"{folder} ({precision}): same class {100 * (found == own).mean():.2f} %, accuracy "
            f"{100 * (found == split.labels).mean():.2f} %"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
