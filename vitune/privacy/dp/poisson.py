"""Batches of Poisson sampling: every image is in each batch with the same probability."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vitune.data import CachedImages, Split


class PoissonBatches:
    """`num_steps` batches per epoch of random size, some perhaps empty.

    The draw comes from the operating system's entropy, not from the run's seed: who knows which
    images met in a step needs less noise to see through.

    Args:
        sample_rate: probability of each image, in (0, 1].
    """

    def __init__(self, split: Split, sample_rate: float, num_steps: int) -> None:
        self.images, self.sample_rate, self.num_steps = CachedImages(split), sample_rate, num_steps
        self.generator = torch.Generator()
        self.generator.seed()

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.num_steps):
            drawn = torch.rand(len(self.images), generator=self.generator) < self.sample_rate
            yield self.images.__getitems__(drawn.nonzero().flatten().tolist())

    def set_epoch(self, epoch: int) -> None:
        """Epochs differ by themselves."""
