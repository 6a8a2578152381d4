"""Images for a model that is already trained: one labelled split, or a folder without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path

import numpy as np

from vitune.data.cache import CacheSettings
from vitune.data.checks import without_missing
from vitune.data.decode import MAX_MEGAPIXELS, Decoding
from vitune.data.decoded_splits import read_splits
from vitune.data.folder import list_images
from vitune.data.record_content import record_hashes
from vitune.data.records import ImageList, Record
from vitune.data.source import open_source
from vitune.data.split import UNLABELLED, Split
from vitune.errors import DataError, nearest
from vitune.preprocessing import Preprocessing

Choose = Callable[[Sequence[bytes | None]], Iterable[bool]]


def load_labelled(
    spec: str | Path | ImageList,
    preprocessing: Preprocessing,
    *,
    classes: Iterable[str],
    split: str | None = None,
    settings: CacheSettings | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    choose: Choose | None = None,
) -> tuple[Split, tuple[str, ...]]:
    """One split to score a trained model on, with labels in the model's class order.

    Args:
        spec: what `open_source` takes, or its result.
        preprocessing: as stored with the model.
        classes: the model's class names, in its order.
        split: which one; None is "test", or everything if the source has no splits.
        settings: limits on memory and disk, and treatment of bad images.
        max_megapixels: larger images are refused after reading their header.
        choose: function that gets the content hash of every image (None for an unreadable file) and
            returns which to keep; it may raise. Skipped bad images are left out.

    Returns:
        The split and the files that were skipped.

    Raises:
        DataError: no such split, a class the model was not trained on, or a bad image.
    """
    settings, classes = settings or CacheSettings(), tuple(classes)
    listed = spec if isinstance(spec, ImageList) else open_source(spec)
    name = split or ("test" if "test" in listed.splits else "all")
    if name not in listed.splits:
        raise DataError(
            f"split of {listed.spec}: got {name!r}, expected an existing split. "
            f"{nearest(name, listed.splits)}"
        )
    alone = replace(listed, splits={name: listed.splits[name]})
    images, missing = without_missing(alone.relabelled(classes), skip=settings.skip_bad_images)
    records = images.splits[name]
    if choose is not None and not settings.skip_bad_images:
        records = tuple(compress(records, choose(record_hashes(records))))
        choose = None
    decoding = {name: Decoding(preprocessing, None, max_megapixels)}
    read = read_splits({name: records}, classes, decoding, settings)
    found = read.splits[name]
    if choose is not None:  # among the images that decode: a bad file must not count as a new one
        kept = np.fromiter(choose([row.tobytes() for row in found.content_digests]), bool)
        found = found if kept.all() else found.subset(np.flatnonzero(kept))
    return found, (*missing, *read.skipped)


def load_unlabelled(
    folder_or_file: str | Path,
    preprocessing: Preprocessing,
    *,
    settings: CacheSettings | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> tuple[Split, tuple[str, ...]]:
    """Every image below a folder, to predict: a split named "predict" whose labels are UNLABELLED.

    Args:
        folder_or_file: searched to any depth, in sorted order.
        preprocessing: as stored with the model.
        settings: memory, disk and bad images.
        max_megapixels: larger images are refused after reading their header.

    Returns:
        The split and the files that were skipped.

    Raises:
        DataError: no images, or a bad one that must not be skipped.
    """
    records = tuple(Record(path, UNLABELLED) for path in list_images(folder_or_file))
    decoding = {"predict": Decoding(preprocessing, None, max_megapixels)}
    read = read_splits({"predict": records}, (), decoding, settings or CacheSettings())
    return read.splits["predict"], read.skipped
