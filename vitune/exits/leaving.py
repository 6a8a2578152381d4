"""Run a network with exits: confident images leave, the others continue in a smaller batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitune.backbones import logits_of
from vitune.exits.exit_heads import Head
from vitune.exits.thresholds import NEVER


@dataclass(frozen=True)
class Exit:
    """One early exit.

    Args:
        after: blocks before it.
        block: module name of the last of them.
        head: tokens (b, n, d) -> logits (b, c).
    """

    after: int
    block: str
    head: Head


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result: which image left where.

    Shapes:
        logits: (b, c) float32, of the exit at which the image left.
        left: (b,) int64, index of that exit; the number of early exits for the last.

    Args:
        num_early: the number of early exits.
    """

    logits: Tensor
    left: Tensor
    num_early: int

    def tempered(self, temperature: float) -> Tensor:
        """Logits (b, c) for probabilities: those of the last exit divided by the temperature.

        The heads of early exits have theirs in their weights.
        """
        is_last = (self.left == self.num_early).to(self.logits.device)
        return torch.where(is_last[:, None], self.logits / temperature, self.logits)


class _EverybodyLeft(Exception):  # noqa: N818 - it ends a pass, it is no error
    """Raised when no image is left for the rest of the network."""


class EarlyExit:
    """A network whose images leave at the first exit that is confident enough.

    After each exit's block the images that leave are removed from the batch; the following blocks
    see only the others. When all have left, nothing more is run. The network itself is not changed:
    hooks exist for one call.

    Args:
        values: one threshold of the largest probability per exit; NEVER if no image leaves there.
    """

    def __init__(
        self, model: nn.Module, exits: Sequence[Exit], values: Sequence[float] | None = None
    ) -> None:
        self.model, self.exits = model, tuple(exits)
        self.values = tuple(values) if values is not None else (NEVER,) * len(self.exits)

    def __call__(self, inputs: Tensor) -> Outcome:
        """Logits of every image from the exit it takes."""
        batch = _Batch(len(inputs), len(self.exits), inputs.device)
        actions = [
            self._leaving(batch, index, value)
            for index, value in enumerate(self.values)
            if value <= 1
        ]
        chosen = [at for at, value in zip(self.exits, self.values, strict=True) if value <= 1]
        return self._run(inputs, batch, chosen, actions)

    def forced(self, inputs: Tensor, shares: Sequence[float]) -> Outcome:
        """A run in which the first `shares[0]` of the images leave at exit 0, the next at exit 1
        ...

        For timing: the heads are computed, but their confidence is ignored.
        """
        batch, size = _Batch(len(inputs), len(self.exits), inputs.device), len(inputs)
        ends = [round(size * sum(shares[: index + 1])) for index in range(len(self.exits))]

        def action(index: int) -> Callable[[Tensor], Tensor]:
            def leave(tokens: Tensor) -> Tensor:
                logits = self.exits[index].head(tokens)
                confidence = logits.double().softmax(-1).amax(-1)
                going = (batch.alive < ends[index]) | (confidence > NEVER)
                return batch.take(tokens, logits, going, index)

            return leave

        actions = [action(index) for index in range(len(self.exits))]
        return self._run(inputs, batch, self.exits, actions)

    def all_logits(self, inputs: Tensor) -> Tensor:
        """Every exit's logits of every image, the last exit's being bit for bit the plain
        network's.

        Shapes: (e + 1, b, c) float32.
        """
        found: list[Tensor] = []

        def record(head: Head) -> Callable[[Tensor], Tensor]:
            def keep(tokens: Tensor) -> Tensor:
                found.append(head(tokens).float())
                return tokens

            return keep

        with _behind(self.model, self.exits, [record(at.head) for at in self.exits]):
            last = logits_of(self.model(inputs)).float()
        return torch.stack([*found, last])

    def _leaving(self, batch: _Batch, index: int, value: float) -> Callable[[Tensor], Tensor]:
        head = self.exits[index].head

        def leave(tokens: Tensor) -> Tensor:
            logits = head(tokens)
            going = logits.double().softmax(-1).amax(-1) >= value
            return batch.take(tokens, logits, going, index)

        return leave

    def _run(
        self,
        inputs: Tensor,
        batch: _Batch,
        exits: Sequence[Exit],
        actions: Sequence[Callable[[Tensor], Tensor]],
    ) -> Outcome:
        try:
            with _behind(self.model, exits, actions):
                batch.finish(logits_of(self.model(inputs)))
        except _EverybodyLeft:
            pass
        assert batch.logits is not None
        return Outcome(batch.logits, batch.left, len(self.exits))


class _Batch:
    """Which images are still in the network, and the answers of those that have left."""

    def __init__(self, size: int, num_exits: int, device: torch.device) -> None:
        self.size = size
        self.alive = torch.arange(size, device=device)
        self.left = torch.full((size,), num_exits, device=device)
        self.logits: Tensor | None = None

    def take(self, tokens: Tensor, logits: Tensor, going: Tensor, index: int) -> Tensor:
        """Let the images `going` leave with their logits; return the tokens of the others."""
        leaving = int(going.sum())
        if not leaving:
            return tokens
        self._answer(self.alive[going], logits[going])
        self.left[self.alive[going]] = index
        if leaving == len(going):
            raise _EverybodyLeft
        staying = ~going
        self.alive = self.alive[staying]
        return tokens[staying]

    def finish(self, logits: Tensor) -> None:
        """Record the last exit's logits for all remaining images."""
        self._answer(self.alive, logits)

    def _answer(self, images: Tensor, logits: Tensor) -> None:
        logits = logits.float()
        if self.logits is None:
            self.logits = logits.new_empty(self.size, logits.shape[-1])
        self.logits[images] = logits


@contextmanager
def _behind(
    model: nn.Module, exits: Sequence[Exit], actions: Sequence[Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Within the context, each action sees, and may shorten, the tokens after its exit's block."""

    def hook(action: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def after(_: nn.Module, __: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (action(output[0]), *output[1:])
            return action(output)

        return after

    handles = [
        model.get_submodule(at.block).register_forward_hook(hook(action))
        for at, action in zip(exits, actions, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def observed(model: nn.Module, blocks: Sequence[str], see: Callable[[int, Tensor], None]) -> Any:
    """Within the context, `see(index, tokens)` is called after each of `blocks`."""

    def action(index: int) -> Callable[[Tensor], Tensor]:
        def keep(tokens: Tensor) -> Tensor:
            see(index, tokens)
            return tokens

        return keep

    places = [Exit(0, block, lambda tokens: tokens) for block in blocks]
    return _behind(model, places, [action(index) for index in range(len(blocks))])
