"""The cost of leaving at each exit: counted operations, measured wall-clock time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitune.exits.leaving import EarlyExit, observed

ROUNDS = 5

Subject = tuple[Callable[[Tensor], object], Sequence[Tensor]]
"""The subject of the timing, and its batches."""


@torch.inference_mode()
def exit_gflops(runner: EarlyExit, image: Tensor) -> list[float]:
    """Billions of multiply-adds of one image that leaves at each exit, ending with the last exit.

    Matrix products and attention are counted, as papers do; an image that passes an exit also pays
    for that exit's head.

    Shapes: image (1, 3, h, w).
    """
    seen: list[int] = []
    blocks = [place.block for place in runner.exits]
    with FlopCounterMode(display=False) as counter:

        def see(index: int, tokens: Tensor) -> None:
            runner.exits[index].head(tokens)
            seen.append(counter.get_total_flops())

        with observed(runner.model, blocks, see):
            runner.model(image)
        seen.append(counter.get_total_flops())
    return [operations / 2e9 for operations in seen]


@torch.inference_mode()
def full_gflops(model: nn.Module, image: Tensor) -> float:
    """Billions of multiply-adds of the plain network on one image (1, 3, h, w)."""
    with FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 2e9


@torch.inference_mode()
def seconds_per_image(
    subjects: Sequence[Subject],
    *,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Median seconds per image of each subject over its batches.

    The subjects take turns in every round, so that a machine that slows down slows all of them, in
    a new order each time, so that none always follows the same one; each is warmed up once.

    Args:
        clock: wall-clock by default; `time.process_time` counts only this process's work, for a
            shared machine.
    """
    times: list[list[float]] = [[] for _ in subjects]
    for run, inputs in subjects:
        run(inputs[0])
    turns, shuffled = list(zip(subjects, times, strict=True)), random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(turns)
        for (run, inputs), found in turns:
            _settle(inputs[0])
            started = clock()
            for batch in inputs:
                run(batch)
            _settle(inputs[0])
            found.append((clock() - started) / sum(map(len, inputs)))
    return [median(found) for found in times]


def block_share(depth: int, after: Sequence[int], shares: Sequence[float]) -> float:
    """The fraction of all blocks that is run if `shares` of the images leave at each exit.

    Args:
        after: blocks before each early exit.
        shares: of the images that leave there; the rest run to the end.
    """
    ends = [0, *after, depth]
    staying = [1.0]
    for share in shares:
        staying.append(staying[-1] - share)
    segments = [end - start for start, end in pairwise(ends)]
    return sum(n * part for n, part in zip(segments, staying, strict=True)) / depth


def cut_off(runner: EarlyExit, index: int) -> EarlyExit:
    """The network truncated at exit `index`: all images leave there, no other exit is evaluated."""
    return EarlyExit(runner.model, [runner.exits[index]], [0.0])


def _settle(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
