"""Tiny complete copies of the suites on disk, with every pitfall of the real releases."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vitune.bench.suites.suites import FGVC, VTAB1K, Entry
from vitune.errors import VituneError, nearest

SIZES = {"train800": 128, "val200": 16, "test": 12}
"""Images by list: training has at least one batch for every preset, so that each can run."""
FEWSHOT_NAMES = ("food101", "oxford_pets")
BLANK_TASK, GAP_TASK, WIDE_TASK = "dtd", "kitti", "kitti"
SHAPES = ((1, 1), (1, 3), (3, 1))
"""Height and width of an image, in sides."""


@dataclass(frozen=True)
class _Painter:
    """Coloured boxes that depend on the label, no two alike."""

    rng: np.random.Generator
    side: int

    def save(self, path: Path, label: int, shape: tuple[int, int] = (1, 1)) -> None:
        colour = np.array([(label * 67) % 256, (label * 131) % 256, (label * 29) % 256])
        noise = self.rng.integers(-30, 31, (shape[0] * self.side, shape[1] * self.side, 3))
        pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


def write_fake(
    root: str | Path, suite: str, *, side: int = 32, seed: int = 0, overlap: Sequence[str] = ()
) -> list[str]:
    """Write a tiny copy of a suite below `root` and return its tasks' names.

    VTAB: one task with a space in every path, one with a label that training lacks and wide
    images, an empty last line in every list, trainval as copies of train and val. FGVC: 1-based
    ids, a class that validation lacks, wide and tall images. A real release has all of these.

    Args:
        root: a folder that does not exist or is empty.
        suite: "vtab1k", "fgvc" or "fewshot".
        side: shorter side of the images, pixels.
        overlap: tasks whose test split contains a training image, which must be refused.

    Raises:
        VituneError: unknown suite, or a folder that is not empty.
    """
    writers: dict[str, Callable[[Path, _Painter, Sequence[str]], list[str]]] = {
        "vtab1k": _vtab1k,
        "fgvc": _fgvc,
        "fewshot": _fewshot,
    }
    if suite not in writers:
        raise VituneError(
            f"--suite: got {suite!r}, expected one with files. {nearest(suite, writers)}"
        )
    base = Path(root)
    if base.exists() and (not base.is_dir() or any(base.iterdir())):
        raise VituneError(f"data fake: got {str(root)!r}, which exists, expected a new folder.")
    return writers[suite](base, _Painter(np.random.default_rng(seed), side), overlap)


def _vtab1k(root: Path, painter: _Painter, overlap: Sequence[str]) -> list[str]:
    for entry in VTAB1K:
        folder = root / entry.name
        lines: dict[str, list[str]] = {}
        for split, count in SIZES.items():
            lines[split] = []
            for index in range(count):
                label = _label(entry, index, split)
                blank = " " if entry.name == BLANK_TASK else ""
                name = f"{index:03d}{blank}{label:03d}.jpg"
                shape = SHAPES[1] if entry.name == WIDE_TASK else SHAPES[0]
                painter.save(folder / "images" / split / name, label, shape)
                lines[split].append(f"images/{split}/{name} {label}")
        lines["train800val200"] = []
        for index, line in enumerate(lines["train800"] + lines["val200"]):
            image, written_label = line.rsplit(maxsplit=1)
            copy = folder / "images" / "train800val200" / f"{index:06d}.jpg"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((folder / image).read_bytes())
            lines["train800val200"].append(f"images/train800val200/{copy.name} {written_label}")
        if entry.name in overlap:
            first = folder / lines["test"][0].rsplit(maxsplit=1)[0]
            twin = folder / lines["train800"][0].rsplit(maxsplit=1)[0]
            first.write_bytes(twin.read_bytes())
        for split, written in lines.items():
            (folder / f"{split}.txt").write_text("\n".join(written) + "\n\n")
    return [entry.name for entry in VTAB1K]


def _label(entry: Entry, index: int, split: str) -> int:
    """Every class in turn; the last class of one task is only in test."""
    classes = min(entry.num_classes, 8)
    if entry.name == GAP_TASK and split != "test":
        classes -= 1
    return index % classes


def _fgvc(root: Path, painter: _Painter, overlap: Sequence[str]) -> list[str]:
    for entry in FGVC:
        folder = root / entry.folders[0]
        classes_of = {"train": 4, "val": 3, "test": 4}
        for (split, classes), count in zip(classes_of.items(), SIZES.values(), strict=True):
            labels = {}
            for index in range(count):
                label = 1 + index % classes
                name = f"{label:03d}.kind/{split}_{index:04d}.jpg"
                shape = SHAPES[index % len(SHAPES)]
                painter.save(folder / entry.image_folder / name, label, shape)
                labels[name] = label
            if split == "test" and entry.name in overlap:
                first = next(iter(labels))
                twin = folder / entry.image_folder / "001.kind/train_0000.jpg"
                (folder / entry.image_folder / first).write_bytes(twin.read_bytes())
            (folder / f"{split}.json").write_text(json.dumps(labels))
    return [entry.name for entry in FGVC]


def _fewshot(root: Path, painter: _Painter, overlap: Sequence[str]) -> list[str]:
    for name in FEWSHOT_NAMES:
        folder = root / name
        for list_name, part, each in (
            ("train_meta.list.num_shot_2.seed_0", "train", 2),
            ("train_meta.list.num_shot_4.seed_0", "train", 4),
            ("test_meta.list", "test", 3),
        ):
            lines = []
            for label in range(4):
                for index in range(each):
                    image = f"kind {label}/{index:03d}.jpg"
                    path = folder / "images" / part / image
                    if not path.is_file():
                        painter.save(path, label)
                    lines.append(f"{image} {label}")
            (folder / list_name).write_text("\n".join(lines) + "\n")
    return list(FEWSHOT_NAMES)
