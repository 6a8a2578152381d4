"""One split ready for training or scoring: uint8 images, labels, names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitune.data.records import Drawing, Pixels
from vitune.errors import DataError

UNLABELLED = -1


@dataclass(frozen=True, eq=False)
class Split:
    """Decoded images of one split with their labels.

    Args:
        name: train, val, test, trainval, all, or predict for unlabelled images.
        paths: one per image; a drawing's name if there is no file.
        classes: class names; `labels` indexes them.
        sources: the files or drawings themselves, for views that are cut again every epoch.

    Shapes:
        images: (b, height, width, 3) uint8, in memory or a read-only memory map.
        labels: (b,) int64; UNLABELLED in a split to predict.
        digests: (b, 32) uint8, sha256 of each file's bytes; None hashes the pixels instead.
        groups: (b,) int64, equal for images of one group, over all splits that were loaded
            together; None if groups are unknown.

    Raises:
        DataError: images, labels and paths of different numbers, or a label outside the classes.
    """

    name: str
    images: Pixels
    labels: npt.NDArray[np.int64]
    paths: tuple[str, ...]
    classes: tuple[str, ...]
    digests: Pixels | None = None
    sources: tuple[Path | Drawing, ...] | None = None
    groups: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.labels) == len(self.paths):
            raise DataError(
                f"split {self.name!r}: got {len(self.images)} images, {len(self.labels)} labels "
                f"and {len(self.paths)} paths, expected equal numbers."
            )
        if len(self.labels) and self.labels.max() >= len(self.classes):
            raise DataError(
                f"labels of split {self.name!r}: got {int(self.labels.max())}, expected less than "
                f"the {len(self.classes)} classes."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: npt.ArrayLike) -> Split:
        """The images at `indices`, in that order, copied into memory."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Split(
            self.name,
            np.asarray(self.images[chosen]),
            self.labels[chosen],
            tuple(self.paths[index] for index in chosen),
            self.classes,
            None if self.digests is None else self.digests[chosen],
            None if self.sources is None else tuple(self.sources[index] for index in chosen),
            None if self.groups is None else self.groups[chosen],
        )

    @cached_property
    def content_digests(self) -> Pixels:
        """`digests`; for images without files the sha256 of their pixels. Shapes: (b, 32) uint8."""
        if self.digests is not None:
            return self.digests
        found = [hashlib.sha256(np.ascontiguousarray(image).data) for image in self.images]
        joined = b"".join(digest.digest() for digest in found)
        return np.frombuffer(joined, np.uint8).reshape(-1, 32)

    @cached_property
    def content_hash(self) -> str:
        """64 hex digits that identify the images and class names of the split.

        sha256 over the sorted (file digest, class name) pairs: the same for any order, folder,
        image size and class order; different as soon as an image or a label differs.
        """
        hexes = [digest.tobytes().hex() for digest in self.content_digests]
        lines = sorted(
            f"{digest} {self._class_name(label)}"
            for digest, label in zip(hexes, self.labels, strict=True)
        )
        return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()

    @property
    def class_counts(self) -> Mapping[str, int]:
        """Images per class name, in class order, including zeros."""
        counts = np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def _class_name(self, label: np.int64) -> str:
        return self.classes[label] if label >= 0 else ""
