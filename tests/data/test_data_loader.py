"""Batches: one index each, seeded order, no image file after the first pass, shardable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from PIL import Image

from vitune.data import (
    CachedImages,
    EpochSampler,
    Split,
    batches,
    load_splits,
    normalise,
    seeded_generator,
)
from vitune.errors import DataError
from vitune.preprocessing import Preprocessing

Make = Callable[..., Path]


@pytest.fixture
def split() -> Split:
    images = np.random.default_rng(0).integers(0, 256, (10, 5, 6, 3), np.uint8)
    names = tuple(str(number) for number in range(10))
    return Split("train", images, np.arange(10), names, names)


def test_a_batch_is_what_the_indices_say(split: Split) -> None:
    data = CachedImages(split)
    batch = data.__getitems__([7, 2, 2])
    assert batch["images"].shape == (3, 3, 5, 6) and batch["images"].dtype == torch.uint8
    assert batch["labels"].tolist() == [7, 2, 2] and batch["labels"].dtype == torch.int64
    expected = torch.from_numpy(split.images[[7, 2, 2]]).permute(0, 3, 1, 2)
    assert torch.equal(batch["images"], expected)
    one = data[4]
    assert torch.equal(one["images"], torch.from_numpy(split.images[4]).permute(2, 0, 1))
    assert int(one["labels"]) == 4 and len(data) == 10


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(50, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert sorted(order(0, 0)) == list(range(50)) and len(EpochSampler(50, 0)) == 50
    assert order(3, 5) == order(3, 5)
    assert len({tuple(order(*pair)) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


def test_seeded_generators_differ_by_every_number() -> None:
    drawn = {
        float(torch.rand(1, generator=seeded_generator(*numbers)))
        for numbers in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 1, 1))
    }
    assert len(drawn) == 4
    first, again = (torch.rand(3, generator=seeded_generator(4, 2)) for _ in range(2))
    assert torch.equal(first, again)


def test_batches_cover_the_split(split: Split) -> None:
    plain = [batch["labels"].tolist() for batch in batches(split, 4)]
    assert plain == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(list(batches(split, 4, drop_last=True))) == 2
    shuffled = batches(split, 4, sampler=EpochSampler(10, 0))
    assert sorted(label for batch in shuffled for label in batch["labels"].tolist()) == [*range(10)]


def test_batch_sizes_that_cannot_be(split: Split) -> None:
    with pytest.raises(DataError, match=r"batch size: got 0"):
        batches(split, 0)
    with pytest.raises(DataError, match=r"got 11, expected at most the 10 images of split 'train'"):
        batches(split, 11, sampler=EpochSampler(10, 0))
    assert len(batches(split, 11)) == 1


def test_accelerate_keeps_the_order_and_sets_the_epoch(split: Split) -> None:
    sampler = EpochSampler(10, 0)
    loader = Accelerator(cpu=True).prepare(batches(split, 5, sampler=sampler))
    seen = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        seen.append([label for batch in loader for label in batch["labels"].tolist()])
        direct = EpochSampler(10, 0)
        direct.set_epoch(epoch)
        assert seen[-1] == list(direct)
    assert seen[0] != seen[1]


def test_accelerate_shards_whole_batches(split: Split) -> None:
    shards = []
    for rank in range(2):
        loader = prepare_data_loader(
            batches(split, 5, sampler=EpochSampler(10, 0)),
            num_processes=2,
            process_index=rank,
            put_on_device=False,
            rng_types=[],
        )
        shards.append([batch["labels"].tolist() for batch in loader])
    assert [len(shard) for shard in shards] == [1, 1]
    assert sorted(label for shard in shards for batch in shard for label in batch) == [*range(10)]


@pytest.mark.parametrize("budget", [0, 10])
def test_later_epochs_open_no_image_file(
    class_folders: Make, preprocessing: Preprocessing, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load_splits(class_folders(each=5), preprocessing, seed=0, memory_budget_mib=budget)
    assert found.train and isinstance(found.train.images, np.memmap) == (budget == 0)

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("an image was opened again")

    monkeypatch.setattr(Image, "open", never)
    monkeypatch.setattr(Path, "open", never)
    sampler = EpochSampler(len(found.train), 0)
    loader = batches(found.train, 4, sampler=sampler)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert sum(len(batch["labels"]) for batch in loader) == 8


def test_memory_and_disk_give_the_same_batches(
    class_folders: Make, preprocessing: Preprocessing
) -> None:
    root = class_folders(each=5)
    loaders = []
    for budget in (0, 10):
        found = load_splits(root, preprocessing, seed=0, memory_budget_mib=budget)
        assert found.train
        loaders.append(batches(found.train, 3, sampler=EpochSampler(8, 1)))
    compared = 0
    for disk, memory in zip(*loaders, strict=True):
        assert torch.equal(disk["images"], memory["images"])
        compared += 1
    assert compared == 3


def test_normalise_is_the_formula() -> None:
    preprocessing = Preprocessing((4, 4), (0.1, 0.5, 0.9), (0.2, 0.3, 0.4))
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])
    expected = (images.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    got = normalise(images, preprocessing, "cpu")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)
    assert normalise(images, preprocessing, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(DataError, match=r"images: got torch.float32, expected torch.uint8"):
        normalise(images.float(), preprocessing)
