"""The listing of a source before any pixel is decoded: records, splits, one class map."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vitune.errors import DataError, listed, nearest

Pixels = npt.NDArray[np.uint8]

SPLIT_NAMES = ("train", "val", "test", "trainval", "all")

SPLIT_ALIASES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


class Drawing(Protocol):
    """An image made by code or held in memory instead of read from a file."""

    @property
    def name(self) -> str:
        """Unique within the source; used in place of a file's path."""

    @property
    def content(self) -> bytes:
        """Everything that determines the pixels; equal content means the same image."""

    def pixels(self, height: int, width: int) -> Pixels:
        """The image with shape (height, width, 3)."""


@dataclass(frozen=True)
class Record:
    """One labelled image: a file, or a drawing that renders itself.

    Args:
        image: the file's path or the drawing.
        label: index into the class names of the list it belongs to, 0-based.
        group: the patient, object or scene that it shows; images of one group are never divided
            between training and validation. None if groups are unknown.
    """

    image: Path | Drawing
    label: int
    group: str | None = None

    @property
    def name(self) -> str:
        """The file's path, or the drawing's name."""
        return str(self.image) if isinstance(self.image, Path) else self.image.name

    @property
    def exists(self) -> bool:
        """Whether the file exists; a drawing always does."""
        return not isinstance(self.image, Path) or os.path.isfile(self.image)


@dataclass(frozen=True)
class ImageList:
    """All records of a source by split, with ONE class map over every split.

    Args:
        spec: what the user wrote to name the source.
        splits: records by split name, each one of SPLIT_NAMES; "all" if the source has no splits of
            its own, "trainval" if it lists training and validation together.
        classes: class names; `Record.label` indexes them.
            fixed_lists: the lists are a published benchmark, where training may happen to lack a
                label: such labels are counted, not refused.
            unread: files of kinds that are not read.
            loose: images outside the class folders.
    """

    spec: str
    splits: Mapping[str, tuple[Record, ...]]
    classes: tuple[str, ...]
    fixed_lists: bool = False
    unread: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()

    def relabelled(self, classes: tuple[str, ...]) -> ImageList:
        """The same images with labels that index `classes` instead, matched by class name.

        Args:
            classes: class names of a trained head, in its order.

        Raises:
            DataError: a class in use that `classes` does not have.
        """
        new_index = {name: index for index, name in enumerate(classes)}
        used = {record.label for records in self.splits.values() for record in records}
        unknown = sorted(self.classes[label] for label in used - self._shared(new_index))
        if unknown:
            got = listed([shown_class(name, classes) for name in unknown], 5)
            raise DataError(
                f"classes of {self.spec}: got {got}, expected classes the model was trained on. "
                f"{_nearest_class(unknown[0], classes)}"
            )
        moved = {
            name: tuple(
                replace(record, label=new_index[self.classes[record.label]]) for record in records
            )
            for name, records in self.splits.items()
        }
        return replace(self, splits=moved, classes=classes)

    def _shared(self, known: Mapping[str, int]) -> set[int]:
        return {label for label, name in enumerate(self.classes) if name in known}


def shown_class(name: str, others: Iterable[str]) -> str:
    """A class name in quotes, its characters spelt out where one of `others` looks just like it.

    An accented letter may be one character or two; macOS writes folder names with two.
    """
    return repr(name) if _look_alike(name, others) is None else ascii(name)


def _look_alike(name: str, others: Iterable[str]) -> str | None:
    seen = unicodedata.normalize("NFC", name)
    alike = (other for other in others if other != name)
    return next((other for other in alike if unicodedata.normalize("NFC", other) == seen), None)


def _nearest_class(name: str, known: Sequence[str]) -> str:
    twin = _look_alike(name, known)
    if twin is None:
        return nearest(name, known)
    return f"It looks like {twin!a} but has other characters. Rename it."


def require_records(records: Iterable[Record], spec: str, split: str) -> tuple[Record, ...]:
    """The records as a tuple, which must not be empty.

    Raises:
        DataError: there are none.
    """
    found = tuple(records)
    if not found:
        raise DataError(
            f"split {split!r} of {spec}: got no images, expected at least one. "
            "Remove the empty split or fill it."
        )
    return found
