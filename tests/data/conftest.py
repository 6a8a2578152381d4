"""Tiny real image folders, lists and tables for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitune.preprocessing import Preprocessing

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITUNE_CACHE", str(tmp_path / "default-cache"))


@pytest.fixture
def preprocessing() -> Preprocessing:
    return Preprocessing((8, 8), HALF, HALF)


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Writes a picture whose pixels are a function of `seed`."""

    def write(path: Path, seed: int, size: tuple[int, int] = (12, 10)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def class_folders(tmp_path: Path, picture: Callable[..., Path]) -> Callable[..., Path]:
    """Makes <root>/<split>/<class>/<n>.png with different pictures everywhere."""
    made = iter(range(100_000))

    def make(
        name: str = "photos",
        splits: Iterable[str] = ("",),
        classes: Iterable[str] = ("ant", "bee"),
        each: int = 4,
    ) -> Path:
        root = tmp_path / name
        for split in splits:
            for label in classes:
                for number in range(each):
                    picture(root / split / label / f"{number}.png", next(made))
        return root

    return make


@pytest.fixture
def vtab_task(tmp_path: Path, picture: Callable[..., Path]) -> Callable[..., Path]:
    """A VTAB-1k task of 8/4/12/6 images: a blank in a path, an empty line, a label gap (no 2)."""

    def make(num_test: int = 6) -> Path:
        task = tmp_path / "vtab" / "cifar"
        labels = [0, 1, 3]
        first, later = range(0, 8), range(8, 12)
        lists = {
            "train800": first,
            "val200": later,
            "train800val200": range(12),
            "test": range(100, 100 + num_test),
        }
        for name, seeds in lists.items():
            lines = []
            for seed in seeds:
                inner = f"images/{name}/{seed:06d}.png" if seed else f"images/{name}/a blank 0.png"
                picture(task / inner, seed)
                lines.append(f"{inner} {labels[seed % 3]}")
            (task / f"{name}.txt").write_text("\n".join(lines) + "\n\n")
        return task

    return make
