"""Class names with probabilities for unlabelled images."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral

from vitune.data import Split
from vitune.errors import VituneError
from vitune.inference.load import LoadedRun


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image.

    Args:
        path: the image.
        classes: names, most probable first.
        probabilities: probabilities of those names, in [0, 1].
    """

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(run: LoadedRun, split: Split, *, top_k: int = 1) -> Iterator[Prediction]:
    """Yield one prediction per image, in the order of the images.

    Raises:
        VituneError: `top_k` is not a whole number between 1 and the number of classes.
    """
    is_whole = isinstance(top_k, Integral) and not isinstance(top_k, bool)
    if not (is_whole and 1 <= top_k <= len(run.classes)):
        raise VituneError(f"--top-k: got {top_k!r}, expected 1 to {len(run.classes)} (classes).")
    return _predictions(run, split, int(top_k))


def _predictions(run: LoadedRun, split: Split, top_k: int) -> Iterator[Prediction]:
    paths = iter(split.paths)
    for logits in run.logits(split):
        values, indices = logits.softmax(-1).topk(top_k)  # (b, k)
        for probabilities, classes in zip(values.tolist(), indices.tolist(), strict=True):
            names = tuple(run.classes[index] for index in classes)
            yield Prediction(next(paths), names, tuple(probabilities))


def predictions_csv(predictions: Iterable[Prediction]) -> str:
    """CSV text, one line per image: path, class_1, probability_1, class_2, ...

    Bytes of a path that are not UTF-8 stand as \\xNN, so that any reader can open the file.
    """
    rows = list(predictions)
    width = len(rows[0].classes) if rows else 1
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    numbers = range(1, width + 1)
    writer.writerow(
        ["path", *(f"{what}_{n}" for n in numbers for what in ("class", "probability"))]
    )
    for row in rows:
        cells = [os.fsencode(row.path).decode(errors="backslashreplace")]
        for name, probability in zip(row.classes, row.probabilities, strict=True):
            cells += [name, f"{probability:.6f}"]
        writer.writerow(cells)
    return buffer.getvalue()
