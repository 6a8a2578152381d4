"""The inputs of an objective besides images and labels, and its interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from vitune.errors import VituneError

DeltaNoise = Callable[[int, Tensor], Tensor]
"""(block index, change of a layer's output) -> the change with noise on it."""


@dataclass(frozen=True)
class NoisePlan:
    """Where noise on an adapter's changes can act; made by `vitune.methods.noise_plan`.

    Args:
        num_blocks: depth of the backbone.
        starts_at_first: whether the first block gets noise; in a hierarchical backbone it does.
        applied: `applied(noise)` is a context within which every adapted layer of a block uses
            `noise(block, delta)` instead of its change.
    """

    num_blocks: int
    starts_at_first: bool
    applied: Callable[[DeltaNoise], AbstractContextManager[None]]


@dataclass(frozen=True)
class Step:
    """The circumstances of one training step.

    Args:
        number: steps before this one.
        progress: completed share of training, in [0, 1].
        indices: position of each image in the training set (b,); None if unknown.
        logits: turns the model's output into logits (b, c).
        penalty: the method's own term at this progress and for these labels, or None.
    """

    number: int = 0
    progress: float = 0.0
    indices: Tensor | None = None
    logits: Callable[[Any], Tensor] = lambda output: output
    penalty: Callable[[float, Tensor | None], Tensor | None] | None = None

    def with_penalty(
        self, losses: dict[str, Tensor], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`losses` with the method's own term for images with `labels`, if it has one now."""
        term = None if self.penalty is None else self.penalty(self.progress, labels)
        return losses if term is None else {**losses, "penalty": term}


class Objective(Protocol):
    """Named losses of a batch; the training loss is their sum."""

    @property
    def needs_noise_plan(self) -> bool:
        """Whether `prepare` must be given a plan."""

    @property
    def needs_indices(self) -> bool:
        """Whether each step must provide its image indices."""

    def prepare(self, plan: NoisePlan | None) -> None:
        """Called once before training; raises if the objective cannot be used."""

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, step: Step
    ) -> dict[str, Tensor]:
        """The losses of `images` (b, 3, h, w) with labels (b,) or target shares (b, c)."""


def check_range(name: str, value: Any, low: float, *, below: float | None = None) -> None:
    """Refuse a number under `low`, or not under `below`.

    Raises:
        VituneError: out of range, or no number.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value < low or (below is not None and value >= below):
        span = f"at least {low}" if below is None else f"in [{low}, {below})"
        raise VituneError(f"{name}: got {value!r}, expected a number {span}.")


def check_word(name: str, value: Any, valid: Sequence[str]) -> None:
    """Refuse a word that is not in `valid`.

    Raises:
        VituneError: any other word.
    """
    if value not in valid:
        raise VituneError(f"{name}: got {value!r}, expected one of {tuple(valid)}.")
