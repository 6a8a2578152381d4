"""Hashes of a run's inputs: the splits of a source, and the files of a backbone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from vitune.backbones import local_files
from vitune.data import ImageList, Record, Split, Splits, content_hashes, record_digests


def hashes_of_files(backbone: str, checkpoint: str | None) -> dict[Path, str]:
    """Content hash by path of the local files that a backbone is read from."""
    files = local_files(backbone, checkpoint)
    return dict(zip(files, content_hashes(files), strict=True))


def hashes_of_source(listed: ImageList) -> dict[str, str]:
    """`ordered_hash` of every split of a source; files are hashed, no pixel is decoded.

    A missing file enters the hash as "missing".
    """
    return {
        name: ordered_hash(
            _digests(records),
            [record.label for record in records],
            listed.classes,
            None if all(r.group is None for r in records) else [r.group for r in records],
        )
        for name, records in listed.splits.items()
    }


def combined(by_split: Mapping[str, str]) -> str:
    """One hash for all splits of a source."""
    lines = [f"{name} {value}" for name, value in sorted(by_split.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def ordered_hash(
    digests: Iterable[str],
    labels: Iterable[int],
    classes: Sequence[str],
    groups: Sequence[Hashable] | None = None,
) -> str:
    """sha256 over the classes and every image's digest and label, in order.

    The order counts: it determines the batches, and scores are stored by position. Of groups, only
    counts which images share one, not what it is called.
    """
    pictures = [f"{digest} {label}" for digest, label in zip(digests, labels, strict=True)]
    if groups is not None:
        places: dict[Hashable, int] = {}
        numbers = (places.setdefault(group, len(places)) for group in groups)
        pictures = [f"{line} {number}" for line, number in zip(pictures, numbers, strict=True)]
    return hashlib.sha256(os.fsencode("\n".join([*classes, *pictures]))).hexdigest()


def hash_of(split: Split) -> str:
    """`ordered_hash` of a decoded split, from the bytes its pixels came from."""
    assert split.digests is not None
    digests = [digest.tobytes().hex() for digest in split.digests]
    groups = None if split.groups is None else split.groups.tolist()
    return ordered_hash(digests, split.labels.tolist(), split.classes, groups)


def hashes_of_training(splits: Splits) -> dict[str, str]:
    """`hash_of` of the decoded training and validation splits."""
    present = {"train": splits.train, "val": splits.val}
    return {name: hash_of(split) for name, split in present.items() if split is not None}


def _digests(records: Sequence[Record]) -> list[str]:
    there = [record for record in records if record.exists]
    found = iter(record_digests(there))
    return [next(found) if record.exists else "missing" for record in records]
