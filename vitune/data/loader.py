"""Batches from a decoded split: one fancy index each, shuffled by (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vitune.data.split import Split
from vitune.errors import DataError
from vitune.preprocessing import Preprocessing

Batch = dict[str, Tensor]


class CachedImages(Dataset[Batch]):
    """A split as a PyTorch data set that hands out whole batches.

    Shapes:
        images: (b, 3, height, width) uint8, channels last in memory.
        labels: (b,) int64.
        indices: (b,) int64, positions in the split.
    """

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Batch:
        batch = self.__getitems__([index])
        return {name: values[0] for name, values in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The images at `indices` by one fancy index; a DataLoader calls it once per batch."""
        chosen = np.asarray(indices, dtype=np.int64)
        images = torch.from_numpy(np.asarray(self.split.images[chosen]))  # (b, h, w, 3)
        return {
            "images": images.permute(0, 3, 1, 2),  # (b, 3, h, w)
            "labels": torch.from_numpy(self.split.labels[chosen]),
            "indices": torch.from_numpy(chosen),
        }


class EpochSampler(Sampler[int]):
    """Every index once per epoch, in an order that is a pure function of (seed, epoch).

    Args:
        num_images: size of the split.
        seed: of the run, 0 or more.
    """

    def __init__(self, num_images: int, seed: int) -> None:
        self.num_images, self.seed, self.epoch = num_images, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that determines the order; accelerate calls it through its loaders."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[int]:
        generator = seeded_generator(self.seed, self.epoch)
        yield from torch.randperm(self.num_images, generator=generator).tolist()


def seeded_generator(*numbers: int) -> torch.Generator:
    """A CPU generator that is a pure function of numbers such as (seed, epoch, step, rank)."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


def batches(
    split: Split,
    batch_size: int,
    *,
    sampler: EpochSampler | None = None,
    drop_last: bool = False,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """A DataLoader over a split that accelerate can shard; batches are made in this process.

    Args:
        split: decoded images.
        batch_size: images per batch, at least 1.
        sampler: order of training; None is the split's own order.
        drop_last: leave out a last batch that is not full.
        pin_memory: page-locked batches, for a GPU.

    Raises:
        DataError: a batch size below 1, or a training batch larger than the split.
    """
    if batch_size < 1:
        raise DataError(f"batch size: got {batch_size}, expected at least 1.")
    if batch_size > len(split) and (sampler is not None or drop_last):
        raise DataError(
            f"batch size: got {batch_size}, expected at most the {len(split)} images of split "
            f"{split.name!r}. Pass --batch-size {len(split)} or less."
        )
    return DataLoader(
        CachedImages(split),
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        collate_fn=as_is,
        pin_memory=pin_memory,
    )


def as_is(batch: Any) -> Any:
    """The batch that `CachedImages` has already assembled."""
    return batch


def normalise(
    images: Tensor,
    preprocessing: Preprocessing,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(images / 255 - mean) / std per channel, moved as uint8 and computed on the device.

    Args:
        images: uint8.
        preprocessing: mean and std, of pixels scaled to [0, 1].
        device: of the result; None keeps the images' device.
        dtype: of the result; the arithmetic is float32.

    Shapes:
        images: (b, 3, height, width).

    Raises:
        DataError: images that are not uint8.
    """
    if images.dtype != torch.uint8:
        raise DataError(f"images: got {images.dtype}, expected torch.uint8 in 0..255.")
    pixels = images.to(device or images.device, non_blocking=True).float()
    factor, offset = _scaling(preprocessing.mean, preprocessing.std, pixels.device)
    return pixels.mul_(factor).sub_(offset).to(dtype)


@cache
def _scaling(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """1 / (255 std) and mean / std (1, 3, 1, 1), once per device, because a copy to a GPU waits."""
    means, stds = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))
    return 1 / (255 * stds), means / stds
