"""Tasks with uneven classes and with wrong labels, which no default was chosen on.

    python studies/uneven_ground.py OUT --from OLD/tasks.json,FRESH/tasks.json \
      --tasks sign-digits,fashion,mnist,tiny-10,textures

draws from tasks that exist (default_ground.py, fresh_ground.py) and writes OUT/NAME.csv (path,
label, split; the images stay where they are) and OUT/tasks.json for default_rates.py:

- `NAME-uneven`: the largest class has 100 training images, the smallest 5, those between fall
  geometrically, classes in random order. As many test images of each class as there are, 100 at
  most, so that test accuracy is the mean over classes.
- `NAME-noisy`: 100 training images per class at most, of which a fifth bears the label of another
  class, drawn evenly. Test labels are right. Validation images are a part of the training images,
  so their labels are as often wrong.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitune.data import load_splits
from vitune.preprocessing import Preprocessing

LARGEST, SMALLEST, TEST = 100, 5, 100
WRONG = 0.2

Images = dict[str, list[list[str]]]
"""Split → class → paths."""


def images_of(data: str) -> Images:
    """The labelled images of a folder or a table, its test images apart."""
    path = Path(data)
    if path.suffix == ".csv":
        with path.open() as file:
            rows = [(row["path"], int(row["label"]), row["split"]) for row in csv.DictReader(file)]
    else:
        size = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
        splits = load_splits(data, size, seed=0, val_fraction=0)
        rows = [
            (image, int(label), split.name)
            for split in (splits.train, splits.test)
            if split is not None
            for image, label in zip(split.paths, split.labels, strict=True)
        ]
    classes = 1 + max(label for _, label, _ in rows)
    found: Images = {name: [[] for _ in range(classes)] for name in ("train", "test")}
    for image, label, split in rows:
        found[split][label].append(image)
    return found


def uneven_sizes(num_classes: int, rng: np.random.Generator) -> list[int]:
    """Training images of each class, from LARGEST to SMALLEST in equal ratios."""
    sizes = np.geomspace(LARGEST, SMALLEST, num_classes).round().astype(int)
    return list(rng.permutation(sizes))


def drawn(images: Images, sizes: Sequence[int], rng: np.random.Generator) -> list[list[str]]:
    """Rows of the table: path, label, split."""
    rows = []
    for split, most in (("train", sizes), ("test", [TEST] * len(sizes))):
        for label, paths in enumerate(images[split]):
            for place in rng.permutation(len(paths))[: most[label]]:
                rows.append([str(Path(paths[place]).resolve()), str(label), split])
    return rows


def with_wrong_labels(
    rows: list[list[str]], num_classes: int, rng: np.random.Generator
) -> list[list[str]]:
    """The same rows; WRONG of the training images have the label of another class."""
    train = [place for place, row in enumerate(rows) if row[2] == "train"]
    changed = [list(row) for row in rows]
    for place in rng.choice(train, round(WRONG * len(train)), replace=False):
        other = (int(rows[place][1]) + 1 + rng.integers(num_classes - 1)) % num_classes
        changed[place][1] = str(other)
    return changed


def main() -> None:
    """Write the tables and say how many images they have."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--from", dest="known", required=True, help="tasks.json,...")
    parser.add_argument("--tasks", required=True)
    asked = parser.parse_args()
    known: dict[str, dict[str, str]] = {}
    for file in asked.known.split(","):
        known |= json.loads(Path(file).read_text())
    tasks = {}
    for name in asked.tasks.split(","):
        images = images_of(known[name]["data"])
        classes = len(images["train"])
        rng = np.random.default_rng(0)
        uneven = drawn(images, uneven_sizes(classes, rng), rng)
        even = drawn(images, [LARGEST] * classes, rng)
        for kind, rows in (
            ("uneven", uneven),
            ("noisy", with_wrong_labels(even, classes, rng)),
        ):
            path = asked.out / f"{name}-{kind}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([["path", "label", "split"], *rows])
            tasks[f"{name}-{kind}"] = {"data": str(path.resolve()), "kind": kind}
            print(f"{name}-{kind}: {sum(row[2] == 'train' for row in rows)} training images, "
                  f"{sum(row[2] == 'test' for row in rows)} test images")  # fmt: skip
    (asked.out / "tasks.json").write_text(json.dumps(tasks, indent=1) + "\n")


if __name__ == "__main__":
    main()
