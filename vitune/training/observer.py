"""Events that the training loop reports to an observer; training itself prints nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the command line draws its bars without loading PyTorch
    from peft import PeftModel
    from torch.optim import Optimizer

    from vitune.data import Split
    from vitune.runs import RunSummary
    from vitune.training.resume_point import Progress
    from vitune.training.train_config import TrainConfig


class Running(Protocol):
    """The training loop as an observer sees it."""

    model: PeftModel
    config: TrainConfig
    progress: Progress
    raw_optimiser: Optimizer
    schedule: Any
    steps_per_epoch: int

    def scored_weights(self) -> AbstractContextManager[None]:
        """Within the context the model has the weights to score: the averages, if any."""
        ...

    def evaluate(self, split: Split) -> tuple[float, float]:
        """Loss and accuracy on a split."""
        ...


class Observer:
    """Ignores everything; the command line draws bars with a subclass."""

    def prepared(self, stage: str, done: int, total: int) -> None:
        """Images decoded so far in `stage`."""

    def described(self, facts: RunSummary) -> None:
        """What is about to be trained: method, backbone, counts, data."""

    def started(self, loop: Running) -> None:
        """The first (or resumed) epoch is about to begin."""

    def stepped(self, step: int, loss: float, num_images: int) -> None:
        """A batch is done; `num_images` so far in this epoch."""

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """An epoch is done; `row` is its line of metrics.jsonl."""
