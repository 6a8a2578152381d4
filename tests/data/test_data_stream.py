"""A data set that is not held in memory: its batches come from the map as fast as from memory."""

from __future__ import annotations

import time

import numpy as np
import pytest

from vitune.data.disk_array import lookup, new_array, store_index
from vitune.data.loader import EpochSampler, batches
from vitune.data.split import Split

NUM_IMAGES, SIZE = 200_000, 32
CHUNK = 10_000


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """200,000 images of 32 px on disk, 586 MiB, mapped."""
    folder = tmp_path_factory.mktemp("stream")
    shape = (NUM_IMAGES, SIZE, SIZE, 3)
    chunk = np.random.default_rng(0).integers(0, 256, (CHUNK, *shape[1:]), dtype=np.uint8)
    with new_array(folder, "images", shape) as writer:
        for number in range(NUM_IMAGES):
            writer.append(chunk[number % CHUNK])
    store_index(folder, "images", {})
    found = lookup(folder, "images")
    assert found is not None and isinstance(found[0], np.memmap)
    labels = np.arange(NUM_IMAGES, dtype=np.int64) % 10
    paths = ("",) * NUM_IMAGES
    return Split("train", found[0], labels, paths, tuple("0123456789"))


def images_per_second(split: Split, epochs: int = 2) -> float:
    """Of the last epoch, shuffled, batches of 256."""
    sampler = EpochSampler(len(split), seed=0)
    rate = 0.0
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        start, seen = time.perf_counter(), 0
        for batch in batches(split, 256, sampler=sampler):
            seen += len(batch["labels"])
        rate = seen / (time.perf_counter() - start)
        assert seen == NUM_IMAGES
    return rate


def test_a_mapped_set_streams_at_the_rate_of_memory(mapped: Split) -> None:
    held = Split("train", np.array(mapped.images), mapped.labels, mapped.paths, mapped.classes)
    assert type(held.images) is np.ndarray
    ratios = [images_per_second(mapped) / images_per_second(held) for _ in range(2)]
    assert max(ratios) > 0.5, ratios  # about 1 on a quiet machine
