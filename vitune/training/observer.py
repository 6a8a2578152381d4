"""What the loop tells whoever watches; training itself prints nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitune.training.loop import Loop


class Observer:
    """Ignores everything; the command line draws bars with a subclass."""

    def prepared(self, stage: str, done: int, total: int) -> None:
        """Images decoded so far in `stage`."""

    def described(self, facts: dict[str, Any]) -> None:
        """What is about to be trained: method, backbone, counts, data."""

    def started(self, loop: Loop) -> None:
        """The first (or resumed) epoch is about to begin."""

    def stepped(self, step: int, loss: float, num_images: int) -> None:
        """A batch is done; `num_images` so far in this epoch."""

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """An epoch is done; `row` is its line of metrics.jsonl."""
