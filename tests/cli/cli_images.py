"""Images that the tests of the command line train on, and the command that does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")
TRAIN = ["train", "--method", "linear_sgd", "--batch-size", "8", "--lr", "1e-2", "--epochs", "2"]
Failed = Callable[..., str]


def paint(folder: Path, per_class: int, seed: int) -> Path:
    """An ImageFolder of noisy colour squares, one colour per class."""
    generator = np.random.default_rng(seed)
    for channel, name in enumerate(reversed(CLASSES)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            pixels = generator.integers(0, 90, (40, 48, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder
