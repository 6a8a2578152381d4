"""From a spec to decoded splits: checks, hold-out, and the test split only on request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitune.data.cache import CacheSettings, Progress
from vitune.data.checks import (
    Findings,
    check_splits,
    require_two_classes,
    require_two_each,
    training_name,
    without_missing,
)
from vitune.data.decode import MAX_MEGAPIXELS, Decoding
from vitune.data.decoded_splits import read_splits
from vitune.data.grouping import group_numbers, hold_out_groups, linked, with_groups
from vitune.data.holdout import hold_out
from vitune.data.records import ImageList, Record
from vitune.data.remarks import Remark, nearly_black, remarks_on, remarks_on_groups, skipped
from vitune.data.source import open_source
from vitune.data.split import Split
from vitune.errors import DataError, nearest
from vitune.preprocessing import Preprocessing

INCLUDABLE = ("train", "val", "test", "trainval")


@dataclass(frozen=True)
class HeldOut:
    """How a validation split was held out from training.

    Args:
        amount: the requested fraction or number.
        seed: determines which images.
        num_images: how many there are.
        num_groups: of how many groups, if groups are known.
    """

    amount: float | int
    seed: int
    num_images: int
    num_groups: int | None = None


@dataclass(frozen=True, eq=False)
class Splits:
    """The requested splits; one that does not exist or was not requested is None.

    Args:
        trainval: training and validation together, for the refit after selection.
        classes: class names over all splits.
        skipped: files left out because they are missing or cannot be decoded.
        held_out: how validation was held out; None if the source has its own.
        duplicates_in_train: training images whose content occurred before in training.
        unseen_labels: classes of validation or test that the training lists never show (only a
            fixed benchmark may have some).
        num_overlapping: images shared by two splits; above 0 only with `allow_overlap`.
        remarks: remarks on the images that were read.
    """

    train: Split | None
    val: Split | None
    test: Split | None
    trainval: Split | None
    classes: tuple[str, ...]
    skipped: tuple[str, ...]
    held_out: HeldOut | None
    duplicates_in_train: int
    unseen_labels: tuple[str, ...]
    num_overlapping: int
    remarks: tuple[Remark, ...] = ()


def load_splits(
    spec: str | Path | ImageList,
    preprocessing: Preprocessing,
    *,
    seed: int,
    val_fraction: float | int = 0.2,
    include: Iterable[str] = ("train", "val", "test"),
    train_size: tuple[int, int] | None = None,
    skip_bad_images: bool = False,
    allow_overlap: bool = False,
    lone_classes: bool = False,
    memory_budget_mib: float | None = None,
    cache_dir: str | Path | None = None,
    num_workers: int | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    groups: str | None = None,
    on_progress: Progress | None = None,
) -> Splits:
    """Check a source, hold out validation if it has none, and decode the requested splits.

    No pixel of a split outside `include` is decoded: unless "test" is included, only names, labels
    and file hashes of the test split are read.

    Args:
        spec: what `open_source` takes, or its result.
        preprocessing: how pixels become the backbone's input.
        seed: determines the hold-out.
        val_fraction: fraction of training to hold out, or an int number of images; 0 holds out
            none. Unused if the source has a validation split.
        include: some of train, val, test, trainval.
        train_size: (height, width) of the training images if augmentation cuts windows.
        skip_bad_images: leave out and list missing or broken files instead of stopping.
        allow_overlap: count images that two splits share instead of refusing them.
        lone_classes: keep a class with a single image in training instead of refusing it; if every
            class has one, none is held out.
        memory_budget_mib: for all splits together; what does not fit is mapped from disk. None is a
            quarter of the available memory.
        cache_dir: folder on disk; None is $VITUNE_CACHE or ~/.cache/vitune.
        num_workers: decoding threads; None is the number of cores, at most 8.
        max_megapixels: larger images are refused after reading their header.
        groups: regular expression that finds a group's name in a path: see `with_groups`.
        on_progress: called with (images done, total images).

    Raises:
        DataError: a source, split, label or image that cannot be used.
    """
    wanted = _wanted(include)
    listed = spec if isinstance(spec, ImageList) else open_source(spec)
    listed = listed if groups is None else with_groups(listed, groups)
    images, missing = without_missing(listed, skip=skip_bad_images)
    findings = check_splits(images, allow_overlap=allow_overlap)
    records, held_out = _divided(images, findings, wanted, val_fraction, seed, lone_classes)
    settings = CacheSettings(
        memory_budget_mib, cache_dir, num_workers, skip_bad_images, on_progress
    )
    plain = Decoding(preprocessing, None, max_megapixels)
    enlarged = replace(plain, resize_to=train_size)
    decoding = {name: enlarged if name in ("train", "trainval") else plain for name in wanted}
    chosen = {name: records[name] for name in wanted if name in records}
    read = read_splits(chosen, images.classes, decoding, settings)
    _require_classes_left(read.splits, chosen)
    left_out = (*missing, *read.skipped)
    remarks = (
        skipped(left_out),
        *remarks_on(images, [n for n in images.splits if n != "test"], findings.content),
        *remarks_on_groups(images),
        nearly_black(read.dark),
    )
    return Splits(
        **{name: read.splits.get(name) for name in INCLUDABLE},
        classes=images.classes,
        skipped=left_out,
        held_out=held_out,
        duplicates_in_train=_num_repeats(findings.content.get(training_name(images) or "", ())),
        unseen_labels=findings.unseen_labels,
        num_overlapping=findings.num_overlapping,
        remarks=tuple(remark for remark in remarks if remark is not None),
    )


def _wanted(include: Iterable[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(include))
    for name in names:
        if name not in INCLUDABLE:
            raise DataError(
                f"include: got {name!r}, expected some of {INCLUDABLE}. {nearest(name, INCLUDABLE)}"
            )
    return names


def _divided(
    images: ImageList,
    findings: Findings,
    wanted: Sequence[str],
    val_fraction: float | int,
    seed: int,
    lone_classes: bool,
) -> tuple[dict[str, Sequence[Record]], HeldOut | None]:
    """Records of train, val, test and trainval, with validation held out if needed."""
    records: dict[str, Sequence[Record]] = dict(images.splits)
    training = training_name(images)
    if training is None:
        if set(wanted) - {"test"}:
            raise DataError(
                f"splits of {images.spec}: got {', '.join(images.splits)}, expected a training "
                "split. To score a trained model use vitune evaluate."
            )
        return records, None
    full = images.splits[training]
    require_two_classes(full, images)
    records["train"] = full
    records.setdefault("trainval", (*full, *records.get("val", ())))
    if "val" in records or not val_fraction or not {"train", "val"} & set(wanted):
        return records, None
    labels = np.array([record.label for record in full], np.int64)
    if not lone_classes:
        require_two_each(labels, images.classes, images.spec)
    elif np.bincount(labels).max() == 1:
        return records, None
    content = findings.content[training]
    (numbers,) = group_numbers(full)
    if numbers is None:
        train, val = hold_out(labels, val_fraction, seed, content=content)
    else:  # copies of an image belong together, too
        train, val = hold_out_groups(labels, linked(numbers.tolist(), content), val_fraction, seed)
    records["train"] = [full[index] for index in train]
    records["val"] = [full[index] for index in val]
    num_groups = None if numbers is None else len(set(numbers[val].tolist()))
    return records, HeldOut(val_fraction, seed, len(val), num_groups)


def _require_classes_left(
    loaded: Mapping[str, Split], records: Mapping[str, Sequence[Record]]
) -> None:
    """Refuse a class whose training images were all skipped."""
    for name in {"train", "trainval"} & set(loaded):
        split = loaded[name]
        gone = sorted({record.label for record in records[name]} - set(split.labels.tolist()))
        if gone:
            raise DataError(
                f"class {split.classes[gone[0]]!r} of split {name!r}: got only images that cannot "
                "be decoded, expected at least one intact image."
            )


def _num_repeats(content: Sequence[bytes]) -> int:
    return len(content) - len(set(content))
