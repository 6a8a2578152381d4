"""Tasks whose images belong together in groups, which no default was chosen on.

    python studies/grouped_ground.py OUT --raw RAW --from OLD/tasks.json

writes images, OUT/NAME.csv (path, label, split), OUT/NAME-grouped.csv (the same with a column
group) and OUT/tasks.json for default_rates.py. Test images are of other groups than all others:

- `bursts`: of each class of `tiny-10` (default_ground.py) 20 training photographs, five pictures of
  each as a hand-held camera takes them in a row: moved by up to a tenth, tilted by up to five
  degrees, brighter or darker by up to a fifth, saved as JPEG. The test images are `tiny-10`'s own.
- `strips`: squares of ten photographs (RAW as for fresh_ground.py). The left three fifths of each
  are cut into five strips, 20 training squares from each; test squares come from the rest. Each
  strip is a group.
"""

from __future__ import annotations

import argparse
import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from fresh_ground import PHOTOGRAPHS, SIDES
from PIL import Image, ImageEnhance
from uneven_ground import images_of

PHOTOS, FRAMES = 20, 5
STRIPS, TRAIN_SHARE = 5, 0.6
TEST = 100

Row = tuple[str, int, str, str]
"""path, label, split, group."""


def frame(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The photograph as the next picture of a burst shows it."""
    width, height = photo.size
    tilted = photo.rotate(float(rng.uniform(-5, 5)), Image.Resampling.BICUBIC)
    x, y = (round(float(rng.uniform(0, 0.1)) * side) for side in (width, height))
    cut = tilted.crop((x, y, x + round(0.9 * width), y + round(0.9 * height)))
    moved = cut.resize((width, height), Image.Resampling.BICUBIC)
    return ImageEnhance.Brightness(moved).enhance(float(rng.uniform(0.8, 1.2)))


def bursts(out: Path, source: str, rng: np.random.Generator) -> list[Row]:
    """Pictures of each photograph, and the test photographs as they are."""
    images = images_of(source)
    rows: list[Row] = []
    out.mkdir(parents=True, exist_ok=True)
    for label, paths in enumerate(images["train"]):
        for place in rng.permutation(len(paths))[:PHOTOS]:
            group = f"{label}-{place}"
            photo = Image.open(paths[place]).convert("RGB")
            for number in range(FRAMES):
                path = out / f"{group}-{number}.jpg"
                frame(photo, rng).save(path, quality=90)
                rows.append((str(path.resolve()), label, "train", group))
    for label, paths in enumerate(images["test"]):
        rows += [(path, label, "test", f"test-{Path(path).stem}") for path in paths[:TEST]]
    return rows


def strips(out: Path, raw: Path, rng: np.random.Generator) -> list[Row]:
    """Squares from the strips of every photograph, and from the rest of it."""
    rows: list[Row] = []
    for label, name in enumerate(PHOTOGRAPHS):
        photo = Image.open(raw / f"usr/share/backgrounds/mate/{name}.jpg").convert("RGB")
        edges = np.linspace(0, TRAIN_SHARE * photo.width, STRIPS + 1).astype(int)
        parts = [("train", *pair, TEST // STRIPS) for pair in pairwise(edges)]
        parts.append(("test", int(edges[-1]), photo.width, TEST))
        for strip, (split, left, right, number) in enumerate(parts):
            folder = out / split / Path(name).name
            folder.mkdir(parents=True, exist_ok=True)
            for place in range(number):
                side = int(rng.integers(SIDES[0], min(SIDES[1], right - left)))
                x = int(rng.integers(left, right - side))
                y = int(rng.integers(0, photo.height - side))
                path = folder / f"strip{strip}-{place}.jpg"
                photo.crop((x, y, x + side, y + side)).save(path, quality=90)
                rows.append((str(path.resolve()), label, split, f"{label}-strip{strip}"))
    return rows


def write_tables(out: Path, name: str, rows: list[Row]) -> dict[str, dict[str, str]]:
    """The two tables, and their entries for tasks.json."""
    found = {}
    for task, columns in ((name, 3), (f"{name}-grouped", 4)):
        path = out / f"{task}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "label", "split", "group")[:columns])
            writer.writerows(row[:columns] for row in rows)
        found[task] = {"data": str(path.resolve()), "kind": "grouped"}
    return found


def main() -> None:
    """Write the images and tables, and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--raw", type=Path, required=True, help="where the packages were unpacked")
    parser.add_argument("--from", dest="source", type=Path, required=True, help="a tasks.json")
    asked = parser.parse_args()
    known = json.loads(asked.source.read_text())
    rng = np.random.default_rng(0)
    tasks = {
        **write_tables(
            asked.out, "bursts", bursts(asked.out / "bursts", known["tiny-10"]["data"], rng)
        ),
        **write_tables(asked.out, "strips", strips(asked.out / "strips", asked.raw, rng)),
    }
    (asked.out / "tasks.json").write_text(json.dumps(tasks, indent=1) + "\n")
    print(f"{len(tasks)} tasks: {asked.out / 'tasks.json'}")


if __name__ == "__main__":
    main()
