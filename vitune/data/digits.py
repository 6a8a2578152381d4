"""scikit-learn's real handwritten digits: 1,797 grey images of 8 x 8 pixels that ship with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitune.data.holdout import hold_out
from vitune.data.records import ImageList, Pixels, Record
from vitune.errors import DataError

_BRIGHTEST = 16
FILE = Path("datasets", "data", "digits.csv.gz")
"""Where scikit-learn keeps the digits, below its own folder."""


@dataclass(frozen=True)
class Digit:
    """One 8 x 8 digit (a Drawing); `greys` holds its 64 bytes, 0..16."""

    name: str
    greys: bytes

    @property
    def content(self) -> bytes:
        """The bytes that determine the pixels."""
        return self.greys

    def pixels(self, height: int, width: int) -> Pixels:
        """The digit in 0..255, resized bicubically to (height, width, 3)."""
        greys = np.frombuffer(self.greys, dtype=np.uint8).reshape(8, 8)
        scaled = np.round(greys * (255 / _BRIGHTEST)).astype(np.uint8)
        resized = Image.fromarray(scaled).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(resized.convert("RGB"))


def open_digits(spec: str, name: str, options: Mapping[str, int]) -> ImageList:
    """The digits as a training split of `options["train"]` images and the rest as test split.

    The split is stratified and a pure function of `options["seed"]` (200 and 0 unless the user
    says otherwise); there is no validation split, so one is held out.

    Raises:
        DataError: fewer training images than classes, or none left for test.

    Source: UCI "Optical Recognition of Handwritten Digits", as bundled with scikit-learn.
    """
    greys, labels = _digits()
    num_train = options["train"]
    if not 10 <= num_train <= len(labels) - 10:
        raise DataError(
            f"train of {spec}: got {num_train}, expected 10 to {len(labels) - 10} images."
        )
    train, test = hold_out(labels, len(labels) - num_train, options["seed"])
    records = [
        Record(Digit(f"demo:{name}/{index:04d}", greys[index].tobytes()), int(labels[index]))
        for index in range(len(labels))
    ]
    splits = {
        "train": tuple(records[index] for index in train),
        "test": tuple(records[index] for index in test),
    }
    return ImageList(spec, splits, tuple(str(digit) for digit in range(10)))


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Greys (n, 64) in 0..16 and labels (n,), from the file that scikit-learn ships.

    Importing scikit-learn, which imports pandas and SciPy, takes longer than a small run's epoch.
    """
    found = find_spec("sklearn")
    file = None if found is None else Path(found.origin or "").parent / FILE
    if file is not None and file.is_file():
        values = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # (n, 65)
        return values[:, :-1], values[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    greys, labels = load_digits(return_X_y=True)
    return greys.astype(np.uint8), labels.astype(np.int64)
