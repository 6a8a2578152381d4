"""A run's training and validation images: one small file, and queries on it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitune.data.split import Split
from vitune.errors import DataError, listed
from vitune.files import atomic_path

ROLES = ("train", "val")
_COLUMNS = ("sha256", "labels", "paths")
_WORDS = {"train": "training", "val": "validation"}

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ImageTable:
    """The images of one split in the order of training.

    Shapes:
        digests: (b, 32) uint8, as `content_hash` gives them.
        labels: (b,) int64.
    """

    paths: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.paths)

    def holds_the_same(self, other: ImageTable) -> bool:
        """Whether both hold the same images with the same labels in the same order."""
        return np.array_equal(self.labels, other.labels) and np.array_equal(
            self.digests, other.digests
        )


@dataclass(frozen=True, eq=False)
class UsedImages:
    """The images of a run by role: "train" for training, "val" for validation.

    Args:
        classes: class names that the labels index.
    """

    tables: Mapping[str, ImageTable]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, train: Split, val: Split | None) -> UsedImages:
        """The record for a run that trains on `train` and validates on `val`."""
        splits = {"train": train, **({} if val is None else {"val": val})}
        tables = {
            role: ImageTable(split.paths, split.labels, split.content_digests)
            for role, split in splits.items()
        }
        return cls(tables, train.classes)

    @classmethod
    def read(cls, file: str | Path) -> UsedImages:
        """Read a record that `write` wrote.

        Raises:
            DataError: the file is damaged.
        """
        try:
            with Path(file).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                roles = [role for role in ROLES if f"{role}_{_COLUMNS[0]}" in arrays]
                tables = {role: _table(arrays, role) for role in roles}
                classes = _words(arrays["classes"])
        except Exception as error:  # zip and numpy raise almost anything on broken bytes
            raise DataError(
                f"{file}: got a damaged list of images ({error}), expected the one that training "
                "wrote. Replace it with an intact copy."
            ) from None
        return cls(tables, classes)

    def write(self, file: str | Path) -> None:
        """Write the record (a compressed .npz without pickles) atomically."""
        arrays: dict[str, npt.NDArray[Any]] = {"classes": _bytes(self.classes)}
        for role, table in self.tables.items():
            columns: tuple[npt.NDArray[Any], ...] = (
                table.digests, table.labels, _bytes(table.paths)
            )  # fmt: skip
            arrays |= {
                f"{role}_{name}": values for name, values in zip(_COLUMNS, columns, strict=True)
            }
        with atomic_path(file) as aside, aside.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)

    def took_part(self, digests: Sequence[bytes | None]) -> dict[str, Mask]:
        """The role of each image, determined by content.

        Args:
            digests: `content_hash` of each; None is an image that cannot be read.

        Shapes: (b,) by role. A training image does not also count as validation.
        """
        known = {role: self._digests_of(role) for role in ROLES}
        trained = np.array([digest in known["train"] for digest in digests], bool)
        watched = np.array([digest in known["val"] for digest in digests], bool)
        return {"train": trained, "val": watched & ~trained}

    def labelled_otherwise(self, split: Split) -> dict[int, list[str]]:
        """The classes that images of the run had, by their index in `split`, where each is in none
        of its own."""
        had: dict[bytes, set[str]] = {}
        for table in self.tables.values():
            for digest, label in zip(table.digests, table.labels, strict=True):
                had.setdefault(digest.tobytes(), set()).add(self.classes[label])
        found = {}
        for index, digest in enumerate(split.content_digests):
            classes = had.get(digest.tobytes())
            if classes and split.classes[split.labels[index]] not in classes:
                found[index] = sorted(classes)
        return found

    def digests(self) -> frozenset[bytes]:
        """The content hashes of all training and validation images of the run."""
        return frozenset().union(*map(self._digests_of, ROLES))

    @property
    def identity(self) -> str:
        """64 hex digits of classes, images and labels in order; wherever the files are."""
        digest = hashlib.sha256(_bytes(self.classes).tobytes())
        for role, table in self.tables.items():
            digest.update(role.encode() + table.labels.tobytes() + table.digests.tobytes())
        return digest.hexdigest()

    def difference(self, now: UsedImages) -> str | None:
        """The changes from this record to `now`, in words; None if there are none."""
        if self.classes != now.classes:
            return f"classes {_quoted(now.classes)} instead of {_quoted(self.classes)}"
        mine, theirs = (set(record.tables) for record in (self, now))
        if mine == theirs and all(
            table.holds_the_same(now.tables[role]) for role, table in self.tables.items()
        ):
            return None
        before, after = self._by_path(), now._by_path()
        if not before.keys() & after.keys():  # the folder has moved: told apart by the place in it
            before, after = _inside(before), _inside(after)
        both = before.keys() & after.keys()
        kinds = {
            "changed": [path for path in both if before[path][0] != after[path][0]],
            "missing": before.keys() - after.keys(),
            "new": after.keys() - before.keys(),
            "with another label": [path for path in both if before[path][1] != after[path][1]],
        }
        found = [
            f"{len(paths)} {what} ({_quoted(sorted(paths))})"
            for what, paths in kinds.items()
            if paths
        ]
        if found:
            return ", ".join(found)
        sizes = (f"{len(table)} {_WORDS[role]}" for role, table in now.tables.items())
        return f"the same files in a different order or split ({' and '.join(sizes)} images)"

    def _digests_of(self, role: str) -> frozenset[bytes]:
        table = self.tables.get(role)
        return frozenset() if table is None else frozenset(row.tobytes() for row in table.digests)

    def _by_path(self) -> dict[str, tuple[bytes, int]]:
        return {
            path: (digest.tobytes(), int(label))
            for table in self.tables.values()
            for path, digest, label in zip(table.paths, table.digests, table.labels, strict=True)
        }


def _inside(by_path: dict[str, tuple[bytes, int]]) -> dict[str, tuple[bytes, int]]:
    """The same by the path below the folder that all have in common."""
    try:
        root = os.path.commonpath(by_path)
    except ValueError:  # absolute and relative ones, or none
        return by_path
    return {path[len(root) :].lstrip(os.sep): value for path, value in by_path.items()}


def _table(arrays: Mapping[str, npt.NDArray[np.uint8]], role: str) -> ImageTable:
    digests, labels, paths = (arrays[f"{role}_{name}"] for name in _COLUMNS)
    table = ImageTable(_words(paths), np.asarray(labels, np.int64), digests)
    if digests.shape != (len(table), 32) or len(labels) != len(table):
        raise ValueError(f"{len(table)} paths, {len(labels)} labels, {digests.shape} digests")
    return table


def _bytes(words: Iterable[str]) -> npt.NDArray[np.uint8]:
    """Texts as bytes, each ended by a NUL, which no path contains."""
    return np.frombuffer(b"".join(os.fsencode(word) + b"\0" for word in words), np.uint8)


def _words(data: npt.NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(os.fsdecode(word) for word in data.tobytes().split(b"\0")[:-1])


def _quoted(names: Sequence[str]) -> str:
    return listed([repr(name) for name in names], 3)
