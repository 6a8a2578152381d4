"""Two tasks of ten classes and a thousand images that no default was chosen on.

    python studies/default_proxies.py OUT [--shared ../shared]

- `tiny-10`: Tiny-ImageNet's validation images at 32 pixels. A class is four neighbours in WordNet's
  order, for instance four dogs. The bundled backbone was pre-trained on the training images of all
  200 classes; it has never seen these images and never this grouping.
- `textures`: ten drawn textures with random colours, scale, direction, blur and noise.

It adds them to OUT/tasks.json beside the tasks of default_ground.py.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from tiny_imagenet import Archive

PER_CLASS = {"train": 100, "test": 100}
SIZE = 48
NEIGHBOURS = 4


def write_tiny(out: Path, shared: Path) -> str:
    """Images of ten groups of classes as JPEG files, and a table over them."""
    archive = Archive(shared, "val")
    order = np.argsort(archive.wnids)
    rng = np.random.default_rng(0)
    rows = []
    for group in range(10):
        start = group * 20 + 8
        classes = order[start : start + NEIGHBOURS]
        found = rng.permutation(np.flatnonzero(np.isin(archive.labels, classes)))
        for place, index in enumerate(found[: sum(PER_CLASS.values())]):
            file = out / "tiny-10" / f"{group}-{index}.jpg"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(archive.file(index))
            rows.append((file, group, "train" if place < PER_CLASS["train"] else "test"))
    return write_table(out / "tiny-10.csv", rows)


def field(kind: int, rng: np.random.Generator) -> np.ndarray:
    """A grey texture of one of ten kinds. Shapes: returns (SIZE, SIZE)."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(float)
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 12)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = -x * np.sin(angle) + y * np.cos(angle)
    noise = rng.normal(size=(SIZE, SIZE))
    smooth = ndimage.gaussian_filter(noise, period / 4, mode="wrap")
    smooth /= smooth.std()
    wave = 2 * np.pi / period
    points = rng.uniform(0, SIZE, (int(SIZE * SIZE / period**2) + 3, 2))
    distance = np.sort(np.hypot(y[..., None] - points[:, 0], x[..., None] - points[:, 1]), -1)
    return (
        lambda: np.sin(wave * along),  # stripes
        lambda: np.sin(wave * along + 1.5 * smooth),  # marble
        lambda: np.sin(wave * along) * np.sin(wave * across),  # chequers
        lambda: smooth,  # clouds
        lambda: np.abs(smooth),  # veins
        lambda: (smooth > rng.uniform(-0.3, 0.3)).astype(float),  # blotches
        lambda: distance[..., 0],  # dots
        lambda: distance[..., 1] - distance[..., 0],  # cells
        lambda: ndimage.gaussian_filter1d(noise, period, axis=rng.integers(2)),  # grain
        lambda: np.sin(wave * np.hypot(x - rng.uniform(-20, 70), y + 10)),  # rings
    )[kind]()


def texture(kind: int, rng: np.random.Generator) -> np.ndarray:
    """Shapes: returns (SIZE, SIZE, 3) uint8."""
    grey = field(kind, rng)
    grey = (grey - grey.mean()) / (grey.std() + 1e-6)
    grey = ndimage.gaussian_filter(grey, rng.uniform(0, 1))
    light = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 10)
    grey = grey * rng.uniform(0.5, 1.5) + 0.5 * light / light.std()
    tint = rng.uniform(-0.15, 0.15, (2, 3))
    low, high = rng.uniform(0, 0.4) + tint[0], rng.uniform(0.6, 1) + tint[1]
    if rng.random() < 0.5:
        low, high = high, low
    share = 1 / (1 + np.exp(-grey))[..., None]
    colours = low + (high - low) * share + rng.uniform(0, 0.08) * rng.normal(size=(SIZE, SIZE, 3))
    return (255 * colours.clip(0, 1)).astype(np.uint8)


def write_textures(out: Path) -> str:
    """Drawn textures as PNG files, and a table over them."""
    rng = np.random.default_rng(0)
    rows = []
    (out / "textures").mkdir(exist_ok=True)
    for kind in range(10):
        for split, count in PER_CLASS.items():
            for index in range(count):
                file = out / "textures" / f"{kind}-{split}-{index}.png"
                Image.fromarray(texture(kind, rng)).save(file)
                rows.append((file, kind, split))
    return write_table(out / "textures.csv", rows)


def write_table(path: Path, rows: list[tuple[Path, int, str]]) -> str:
    """A table with path, label and split."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        writer.writerows((str(image.resolve()), label, split) for image, label, split in rows)
    return str(path.resolve())


def main() -> None:
    """Write both tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / "tasks.json"
    tasks = json.loads(path.read_text()) if path.is_file() else {}
    tasks["tiny-10"] = {"data": write_tiny(asked.out, asked.shared), "kind": "photographs"}
    tasks["textures"] = {"data": write_textures(asked.out), "kind": "textures"}
    path.write_text(json.dumps(tasks, indent=1) + "\n")


if __name__ == "__main__":
    main()
