"""Lists of records decoded into splits, within one memory budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitune.data.cache import CacheSettings, Progress, load_pictures
from vitune.data.decode import Decoding
from vitune.data.grouping import group_numbers
from vitune.data.records import Record
from vitune.data.split import Split


@dataclass(frozen=True)
class Reading:
    """The result of decoding.

    Args:
        splits: by name.
        skipped: files that cannot be decoded, left out.
        dark: files that are nearly black.
    """

    splits: dict[str, Split]
    skipped: tuple[str, ...]
    dark: tuple[str, ...]


def read_splits(
    records: Mapping[str, Sequence[Record]],
    classes: tuple[str, ...],
    decoding: Mapping[str, Decoding],
    settings: CacheSettings,
) -> Reading:
    """Decode split by split within one memory budget and one count of progress.

    Args:
        records: the records of each split, by split name.
        classes: class names that the records' labels index.
        decoding: size and limits, by split.
        settings: budget for all splits, folder, threads, bad images.

    Raises:
        DataError: an image that cannot be decoded, or a full disk.
    """
    left_mib = settings.budget_mib
    total, done = sum(map(len, records.values())), 0
    loaded: dict[str, Split] = {}
    skipped: dict[str, None] = {}
    dark: dict[str, None] = {}
    numbers = group_numbers(*records.values())
    for (name, chosen), groups in zip(records.items(), numbers, strict=True):
        shifted = _shifted(settings.on_progress, done, total)
        one = replace(settings, memory_budget_mib=max(0.0, left_mib), on_progress=shifted)
        pictures = load_pictures(chosen, decoding[name], one)
        if not isinstance(pictures.images, np.memmap):
            left_mib -= pictures.images.nbytes / 2**20
        done += len(chosen)
        skipped.update(dict.fromkeys(pictures.skipped))
        dark.update(dict.fromkeys(pictures.dark))
        labels = np.array([chosen[index].label for index in pictures.kept], np.int64)
        paths = tuple(chosen[index].name for index in pictures.kept)
        sources = tuple(chosen[index].image for index in pictures.kept)
        loaded[name] = Split(
            name, pictures.images, labels, paths, classes, pictures.digests, sources,
            None if groups is None else groups[list(pictures.kept)],
        )  # fmt: skip
    return Reading(loaded, tuple(skipped), tuple(dark))


def _shifted(on_progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress within one split as progress over all of them."""
    if on_progress is None:
        return None
    return lambda done, _: on_progress(before + done, total)
