"""Checks of the splits before anything is trained on them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitune.data.record_content import record_hashes
from vitune.data.records import ImageList, Record
from vitune.errors import DataError

DISJOINT = (("train", "val"), ("train", "test"), ("trainval", "test"), ("val", "test"))

_TRAINING = ("train", "trainval", "all")


@dataclass(frozen=True)
class Findings:
    """What the checks found and accepted.

    Args:
        content: one key per record and split; equal keys mean the same file bytes.
        unseen_labels: classes of validation or test that training never shows.
        num_overlapping: validation and test images that another split also holds.
    """

    content: Mapping[str, tuple[bytes, ...]]
    unseen_labels: tuple[str, ...]
    num_overlapping: int


def check_splits(images: ImageList, *, allow_overlap: bool = False) -> Findings:
    """Compare the splits by label and by content (bytes are hashed only if sizes are equal).

    Args:
        images: every split of a source; no pixel is decoded.
        allow_overlap: count images that two splits share instead of refusing them.

    Raises:
        DataError: validation or test holds a label that training does not have (unless the lists
            are a fixed benchmark), or images of another split.
    """
    unseen = _unseen_labels(images)
    if unseen and not images.fixed_lists:
        split, odd = next(iter(unseen.items()))
        raise DataError(
            f"labels of {split} in {images.spec}: got {', '.join(map(repr, odd[:5]))} that "
            "training does not have, expected classes of the training split. Add training images "
            "or "
            f"remove {'it' if len(odd) == 1 else f'the {len(odd)} classes'} from {split}."
        )
    content = _content_keys(images.splits)
    overlapping: set[tuple[str, bytes]] = set()
    for first, second in DISJOINT:
        shared = _shared(content.get(first, ()), content.get(second, ()))
        if shared and not allow_overlap:
            raise _overlap_error(images, content, (first, second), shared)
        overlapping.update((second, key) for key in shared)
    names = tuple(sorted({name for found in unseen.values() for name in found}))
    return Findings(content, names, len(overlapping))


def without_missing(images: ImageList, *, skip: bool) -> tuple[ImageList, tuple[str, ...]]:
    """The list without the files that do not exist, and their names.

    Raises:
        DataError: a file is missing and `skip` is false, or a split has no file left.
    """
    missing: dict[str, list[str]] = {}
    kept: dict[str, tuple[Record, ...]] = {}
    for split, records in images.splits.items():
        absent = [record.name for record in records if not record.exists]
        is_none_left = len(absent) == len(records)
        if absent and (not skip or is_none_left):
            there = any(os.path.lexists(name) for name in absent)
            raise DataError(
                f"split {split!r} of {images.spec}: got {len(absent)} of {len(records)} files "
                f"missing{' or not regular files' if there else ''}, the first {absent[0]!r}, "
                "expected all of them. Correct the list"
                f"{'' if is_none_left else ', or pass --skip-bad-images'}."
            )
        missing[split] = absent
        kept[split] = tuple(record for record in records if record.exists)
    lost = tuple(name for absent in missing.values() for name in absent)
    return (replace(images, splits=kept) if lost else images), lost


def present(images: ImageList) -> ImageList:
    """The list without the files that do not exist, for checks that continue without them."""
    kept = {
        name: tuple(record for record in records if record.exists)
        for name, records in images.splits.items()
    }
    return replace(images, splits=kept)


def training_name(images: ImageList) -> str | None:
    """The training list; training and validation together if there is no separate val."""
    names = ("train", "all") if "val" in images.splits else ("train", "all", "trainval")
    return next((name for name in names if name in images.splits), None)


def require_two_classes(records: Sequence[Record], images: ImageList) -> None:
    """Check that there are at least two classes.

    Raises:
        DataError: all training images are of one class; the message names it.
    """
    labels = {record.label for record in records}
    if len(labels) < 2:
        only = ", ".join(repr(images.classes[label]) for label in labels)
        raise DataError(
            f"classes of {images.spec}: got one, {only}, expected at least 2 among the training "
            f"images. {_deeper(records, images) or 'Add images of other classes.'}"
        )


def _deeper(records: Sequence[Record], images: ImageList) -> str:
    """A remedy if the only class is a folder of class folders, as archives often have; else ''."""
    only = Path(images.spec).expanduser() / images.classes[records[0].label] if records else Path()
    files = [record.image for record in records if isinstance(record.image, Path)]
    inside = [file.relative_to(only).parts for file in files if file.is_relative_to(only)]
    if len({parts[0] for parts in inside if len(parts) > 1}) < 2:
        return ""
    return f"If the folders inside it are the classes, give {only}."


def require_two_each(labels: npt.NDArray[np.int64], classes: Sequence[str], spec: str) -> None:
    """Check that every class in use has at least two images, so that one can be held out.

    Raises:
        DataError: a class with a single image; the message names it.
    """
    counts = np.bincount(labels, minlength=len(classes))
    single = [classes[int(label)] for label in np.flatnonzero(counts == 1)]
    if single:
        raise DataError(
            f"training images of {spec}: got one image of class "
            f"{', '.join(map(repr, single[:5]))}{' and others' if len(single) > 5 else ''}, "
            "expected at least 2 per class to hold out a validation image. Add images, give a "
            "validation split, or train on all images with --refit."
        )


def duplicates(content: Sequence[bytes]) -> npt.NDArray[np.bool_]:
    """True if an image's content occurs more than once in the same split."""
    counts = Counter(content)
    return np.array([counts[key] > 1 for key in content], dtype=bool)


def _unseen_labels(images: ImageList) -> dict[str, list[str]]:
    """Class names by split that no training list of the source holds."""
    known = {r.label for split in _TRAINING for r in images.splits.get(split, ())}
    if not known:
        return {}
    unseen = {}
    for split in ("val", "test"):
        labels = {record.label for record in images.splits.get(split, ())} - known
        if labels:
            unseen[split] = [images.classes[label] for label in sorted(labels)]
    return unseen


def _content_keys(splits: Mapping[str, Sequence[Record]]) -> dict[str, tuple[bytes, ...]]:
    """sha256 of each image's bytes; a file of unique size is its own key and is not read."""
    every = {record.name: record for records in splits.values() for record in records}
    sizes = {
        name: record.image.stat().st_size
        for name, record in every.items()
        if isinstance(record.image, Path)
    }
    crowded = {size for size, count in Counter(sizes.values()).items() if count > 1}
    read = [r for name, r in every.items() if name not in sizes or sizes[name] in crowded]
    hashed = dict(zip((record.name for record in read), record_hashes(read), strict=True))
    # An unreadable file is its own key too: the decoder reports it, if it is read.
    keys = {name: hashed.get(name) or os.fsencode(name) for name in every}
    return {name: tuple(keys[r.name] for r in records) for name, records in splits.items()}


def _shared(first: Iterable[bytes], second: Iterable[bytes]) -> list[bytes]:
    """Keys of `second` that are also in `first`, one per image of `second`."""
    known = set(first)
    return [key for key in second if key in known]


def _overlap_error(
    images: ImageList,
    content: Mapping[str, Sequence[bytes]],
    pair: tuple[str, str],
    shared: list[bytes],
) -> DataError:
    names = [images.splits[split][content[split].index(shared[0])].name for split in pair]
    number = "1 image" if len(shared) == 1 else f"{len(shared)} images"
    return DataError(
        f"splits of {images.spec}: got {number} of {pair[1]} also in {pair[0]} (first: "
        f"{names[1]!r} is {names[0]!r}), expected splits that share no images. Remove them from "
        "one of the two."
    )
