"""What a batch counts for in an optimiser step that gathers several."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Accumulation:
    """How batches of one epoch, the last perhaps smaller, are gathered into steps.

    Args:
        every: batches per optimiser step; the last step of an epoch may have fewer.
        num_batches: of an epoch, on this process.
        batch_size: images of every batch but perhaps the last.
        num_images: of an epoch on this process; None if every batch is full.
    """

    every: int
    num_batches: int
    batch_size: int
    num_images: int | None = None

    def weight(self, index: int, num_images: int) -> float:
        """The factor of the loss of batch `index`, which has `num_images`.

        accelerate divides every loss by `every`. This makes of it the batch's share of the images
        of its step, so that the gradient is that of their mean loss however many batches there are.
        """
        if self.every == 1:
            return 1.0
        end = min(index - index % self.every + self.every, self.num_batches)
        gathered = (end - index + index % self.every) * self.batch_size
        if end == self.num_batches and self.num_images is not None:
            gathered -= max(0, self.num_batches * self.batch_size - self.num_images)
        return self.every * num_images / gathered
