"""A check of your images before training: decodes every file and counts every oddity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitune.data.cache import NEARLY_BLACK, CacheSettings, Progress, decoded
from vitune.data.checks import DISJOINT, check_splits, duplicates, present, training_name
from vitune.data.decode import Decoding, quiet_pillow
from vitune.data.grouping import with_groups
from vitune.data.records import ImageList, Record
from vitune.data.remarks import Remark, nearly_black, remark, remarks_on, remarks_on_groups
from vitune.data.source import open_source
from vitune.errors import DataError
from vitune.preprocessing import Preprocessing

_SMALL = Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Files are decoded in full; the kept pixels only need to show whether the image is dark."""


@dataclass(frozen=True)
class SplitCount:
    """The number of images and classes that a split lists.

    Args:
        fewest, most: (class, images) of the smallest and the largest class in use.
        num_groups: of how many groups the images are; None if groups are unknown.
    """

    name: str
    num_images: int
    num_classes: int
    fewest: tuple[str, int]
    most: tuple[str, int]
    num_groups: int | None = None


@dataclass(frozen=True)
class Inspection:
    """The listing of a source, with remarks.

    Args:
        splits: in the source's order.
        remarks: faults first.
    """

    spec: str
    splits: tuple[SplitCount, ...]
    remarks: tuple[Remark, ...]

    @property
    def num_faults(self) -> int:
        """Kinds of faults: training would refuse the images, or learn something wrong."""
        return sum(found.is_fault for found in self.remarks)


def inspect_images(
    spec: str | Path,
    *,
    groups: str | None = None,
    num_workers: int | None = None,
    on_progress: Progress | None = None,
) -> Inspection:
    """Decode every image of a source and count all oddities.

    Args:
        spec: what `open_source` takes.
        groups: regular expression that finds a group's name in a path.
        num_workers: decoding threads; None is the number of cores, at most 8.
        on_progress: called with (images done, total images).

    Raises:
        DataError: a source that cannot be listed, or groups that cannot be found in it.
    """
    listed = open_source(spec)
    listed = listed if groups is None else with_groups(listed, groups)
    missing = [r.name for records in listed.splits.values() for r in records if not r.exists]
    there = present(listed)
    settings = CacheSettings(num_workers=num_workers, on_progress=on_progress)
    found = [
        remark("missing", "file", "missing or not regular files", missing, is_fault=True),
        *_undecodable(there, settings),
        *_between_files(there),
        *_odd_classes(listed),
        *remarks_on_groups(listed),
    ]
    told = [oddity for oddity in found if oddity is not None]
    counts = tuple(_count(name, records, listed) for name, records in listed.splits.items())
    return Inspection(listed.spec, counts, tuple(sorted(told, key=lambda one: not one.is_fault)))


def _undecodable(images: ImageList, settings: CacheSettings) -> Iterator[Remark | None]:
    every = {record.name: record for records in images.splits.values() for record in records}
    records = list(every.values())
    bad, dark = [], []
    with quiet_pillow():
        for index, outcome in decoded(records, Decoding(_SMALL), settings.workers):
            if isinstance(outcome, DataError):
                bad.append(str(outcome).removeprefix("image ").partition(", expected")[0])
            elif outcome[0].max() < NEARLY_BLACK:
                dark.append(records[index].name)
            if settings.on_progress:
                settings.on_progress(index + 1, len(records))
    yield remark("unreadable", "image", "that cannot be read", bad, is_fault=True)
    yield nearly_black(dark)


def _between_files(images: ImageList) -> Iterator[Remark | None]:
    """Images that occur more than once: in two splits, in two classes, in one class."""
    lenient = replace(images, fixed_lists=True)
    content = check_splits(lenient, allow_overlap=True).content
    shared = [pair for two in DISJOINT for pair in _shared(images, content, *two)]
    yield remark("overlap", "image", "in two splits", shared, is_fault=True)
    yield from remarks_on(images, images.splits, content)
    repeated = [
        record.name
        for name, records in images.splits.items()
        for record, again in zip(records, duplicates(content[name]), strict=True)
        if again
    ]
    yield remark("repeated", "image", "more than once in a split", repeated)


def _shared(
    images: ImageList, content: Mapping[str, Sequence[bytes]], first: str, second: str
) -> Iterator[str]:
    names = {
        split: [record.name for record in images.splits.get(split, ())] for split in (first, second)
    }
    known = dict(zip(content.get(first, ()), names[first], strict=True))
    for key, name in zip(content.get(second, ()), names[second], strict=True):
        if key in known:
            yield f"{name} ({second}) is {known[key]} ({first})"


def _odd_classes(images: ImageList) -> Iterator[Remark | None]:
    """Classes that training cannot use."""
    training = training_name(images)
    if training is None:
        return
    counts = Counter(images.classes[record.label] for record in images.splits[training])
    used = {r.label for name in ("val", "test") for r in images.splits.get(name, ())}
    unseen = [
        images.classes[label] for label in sorted(used) if images.classes[label] not in counts
    ]
    only = list(counts) if len(counts) == 1 else []
    single = [name for name, count in counts.items() if count == 1 and "val" not in images.splits]
    fault = not images.fixed_lists
    yield remark("unseen_class", "class", "without training images", unseen, is_fault=fault)
    yield remark("one_class", "class", "alone: there is nothing to tell apart", only, is_fault=True)
    yield remark(
        "single_image",
        "class",
        "of one image, of which none can be held out",
        single,
        is_fault=True,
    )


def _count(name: str, records: Sequence[Record], images: ImageList) -> SplitCount:
    counts = Counter(images.classes[record.label] for record in records).most_common()
    groups = {record.group for record in records} - {None}
    return SplitCount(name, len(records), len(counts), counts[-1], counts[0], len(groups) or None)
