"""Lists of records decoded into splits, within one memory budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vitune.data.cache import CacheSettings, Progress, load_pictures
from vitune.data.decode import Decoding
from vitune.data.records import Record
from vitune.data.split import Split


def read_splits(
    records: Mapping[str, Sequence[Record]],
    classes: tuple[str, ...],
    decoding: Mapping[str, Decoding],
    settings: CacheSettings,
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Decode split by split within one memory budget and one count of progress.

    Args:
        records: what each split holds; split names are the keys.
        classes: class names that the records' labels index.
        decoding: size and limits, by split.
        settings: budget over all splits, folder, threads, bad images.

    Returns:
        The splits by name, and the files that were skipped.

    Raises:
        DataError: an image that cannot be decoded, or a full disk.
    """
    left_mib = settings.budget_mib
    total, done = sum(map(len, records.values())), 0
    loaded: dict[str, Split] = {}
    skipped: list[str] = []
    for name, chosen in records.items():
        shifted = _shifted(settings.on_progress, done, total)
        one = replace(settings, memory_budget_mib=max(0.0, left_mib), on_progress=shifted)
        pictures = load_pictures(chosen, decoding[name], one)
        if not isinstance(pictures.images, np.memmap):
            left_mib -= pictures.images.nbytes / 2**20
        done += len(chosen)
        skipped += pictures.skipped
        labels = np.array([chosen[index].label for index in pictures.kept], np.int64)
        paths = tuple(chosen[index].name for index in pictures.kept)
        sources = tuple(chosen[index].image for index in pictures.kept)
        loaded[name] = Split(
            name, pictures.images, labels, paths, classes, pictures.digests, sources
        )
    return loaded, tuple(skipped)


def _shifted(on_progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress within one split as progress over all of them."""
    if on_progress is None:
        return None
    return lambda done, _: on_progress(before + done, total)
