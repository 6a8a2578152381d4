"""Gates whose weight gradient holds whole tokens: PEFTLeak for bottlenecks, its twin for LoRA.

A gate at position t opens for tokens with s > c. Its weight gradient is Σ g z over these tokens, so
neighbouring gates differ by the tokens in between; one token alone is read exactly, because the
constant channels say how large Σ g is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitune.privacy.bins import OPEN, Reading, even_edges
from vitune.privacy.prepared import CONSTANT, COPY, LOW, Layout, Prepared

SHARPNESS = 2000.0
"""Slope of a gate in its scalar, which has variance 1: it opens within about 1/400."""
CLOSED = 4e4
"""How far other positions are below the opening point."""


@dataclass(frozen=True)
class Bank:
    """Gates of one module.

    Args:
        name: of the parameter whose gradient, or a part of it, is read.
        size: how many gates.
        write: sets the weight vectors (k, d) of all gates.
        rows: gradient of the parameter -> (k, d), a line for each gate.
    """

    name: str
    size: int
    write: Callable[[Tensor, float], None]
    rows: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Segment:
    """Neighbouring gates of one bank that read one position."""

    bank: int
    first: int
    count: int
    position: int
    is_last: bool


class VectorAttack:
    """Gates in `banks`, set from public images; reads tokens off the gradient.

    Args:
        banks: modules in forward order.
        prepared: the backbone's design.
        public: normalised images (b, 3, h, w).
    """

    needs_clusters = True

    def __init__(self, banks: Sequence[Bank], prepared: Prepared, public: Tensor) -> None:
        self.banks, self.prepared = banks, prepared
        self.segments = _segments([bank.size for bank in banks], prepared.layout.num_patches)
        scalars = prepared.patch_scalar(public)  # (b, patches)
        vectors = [torch.zeros(bank.size, prepared.layout.width) for bank in banks]
        for position in range(prepared.layout.num_patches):
            mine = [one for one in self.segments if one.position == position]
            edges = even_edges(scalars[:, position], sum(one.count for one in mine) - len(mine) + 1)
            start = 0
            for one in mine:
                for index in range(one.count):
                    gate = _gate(prepared, position, float(edges[start + index]))
                    vectors[one.bank][one.first + index] = gate
                start += one.count - 1  # the next bank begins where this one ends
        strength = 1 / (sum(bank.size for bank in banks) * SHARPNESS * 3)
        with torch.no_grad():
            for bank, values in zip(banks, vectors, strict=True):
                bank.write(values, strength)

    @property
    def num_bins(self) -> int:
        """Tokens that can be read at most."""
        return sum(one.count - (not one.is_last) for one in self.segments)

    def readings(self, update: dict[str, Tensor]) -> list[Reading]:
        """Every token that a bin holds; a bin with several gives their weighted mean."""
        found = []
        for one in self.segments:
            bank = self.banks[one.bank]
            lines = bank.rows(update[bank.name].double())[one.first : one.first + one.count]
            bins = lines[:-1] - lines[1:]
            if one.is_last:
                bins = torch.cat([bins, lines[-1:]])
            found += [(one.position, line, float(_constant(line).abs())) for line in bins]
        strongest = max((size for *_, size in found), default=0.0)
        readings: list[Reading] = []
        for position, line, size in found:
            if size > OPEN * strongest:
                reading = _reading(position, line, self.prepared.layout)
                if not (readings and _same(readings[-1], reading)):
                    readings.append(reading)
        return readings


def _same(first: Reading, second: Reading) -> bool:
    """One token seen twice: the edge of two bins runs through it."""
    gap = (first.coefficients - second.coefficients).norm()
    return first.position == second.position and bool(gap < 1e-2 * second.coefficients.norm())


def _segments(sizes: Sequence[int], num_positions: int) -> list[Segment]:
    """All gates in order, shared out evenly; fewer gates than positions leave some unread."""
    gates = [(bank, index) for bank, size in enumerate(sizes) for index in range(size)]
    each = max(1, len(gates) // num_positions)
    segments = []
    for position in range(min(num_positions, len(gates))):
        mine = gates[position * each : (position + 1) * each]
        banks = sorted({bank for bank, _ in mine})
        for bank in banks:
            inside = [index for owner, index in mine if owner == bank]
            segments.append(Segment(bank, inside[0], len(inside), position, bank == banks[-1]))
    return segments


def _gate(prepared: Prepared, position: int, edge: float) -> Tensor:
    """The weight vector of a gate that opens at tokens of `position` with s > `edge`: (d,)."""
    layout = prepared.layout
    weights = torch.zeros(layout.width)
    start = layout.pixels.start
    weights[start : start + LOW] = SHARPNESS * prepared.direction
    for channel, weight in layout.mask(position, CLOSED).items():
        weights[channel] = weight
    return layout.reading((range(layout.width), weights), -2 * CLOSED - SHARPNESS * edge)


def _constant(line: Tensor) -> Tensor:
    """Σ g, from what the constant channels add up to."""
    return (line[0] + line[2] - line[1] - line[3]) / (4 * CONSTANT)


def _reading(position: int, line: Tensor, layout: Layout) -> Reading:
    token = line / _constant(line)
    token = token - token[list(layout.constants)].mean()  # LayerNorm had taken the mean away
    pixels, tags = layout.pixels, layout.tags
    return Reading(
        position,
        token[pixels.start : pixels.stop].float(),
        token[tags.start : tags.stop].float(),
    )


def bottleneck_bank(name: str, down: nn.Parameter, up: nn.Parameter, loss: int) -> Bank:
    """Gates in the down-projection of an adapter behind a copying branch."""

    def write(values: Tensor, strength: float) -> None:
        down.copy_(values / COPY)
        up.zero_()
        up[loss] = strength

    return Bank(name, len(down), write, lambda gradient: gradient)


def low_rank_bank(
    name: str, down: nn.Parameter, up: nn.Parameter, fc1: nn.Linear, fc2: nn.Linear, loss: int
) -> Bank:
    """Gates in the first neurons of a frozen MLP; LoRA's A = 0, and B's r columns pick r of them.

    dA = Bᵀ Σ dy xᵀ: line ρ is the gradient that gate ρ lets through, times the token.
    """
    rank = len(down)

    def write(values: Tensor, strength: float) -> None:
        fc1.weight[:rank] = values
        fc2.weight[loss, :rank] = strength
        down.zero_()
        up.zero_()
        up[:rank] = torch.eye(rank)

    return Bank(name, rank, write, lambda gradient: gradient)


def weight_bank(name: str, first: nn.Parameter, second: Any, loss: int) -> Bank:
    """Gates in all neurons of an MLP whose weights are trained themselves.

    Args:
        second: the trained weight behind it, or the frozen layer.
    """
    behind = second.weight if isinstance(second, nn.Linear) else second

    def write(values: Tensor, strength: float) -> None:
        first.copy_(values)
        behind[loss] = strength

    return Bank(name, len(first), write, lambda gradient: gradient)
