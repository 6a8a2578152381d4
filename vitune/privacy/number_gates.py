"""Gates that each give away one number: scales and shifts (SSF, RLRR), or biases alone (BitFit).

Neuron k of a frozen MLP has z = A (s - c) + α p_k at tokens of its position, p_k one coefficient of
the patch and s a number that all tokens of an image share. A scale's gradient is Σ g z, a shift's
Σ g over the images with s > c; their ratio, less that of a neuron without p, is p_k. With biases
alone only GELU'(z) is seen: there z stays in GELU's bend, and GELU'(z) - GELU'(z - αp) ∝ p.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitune.privacy.bins import OPEN, top_edges
from vitune.privacy.prepared import Prepared

SHARPNESS = 200.0
SPREAD = 14.0
"""The largest s - c that is expected; positions other than its own must not open a gate then."""
LOUDNESS = 2.0
"""α of a coefficient with variance 1 where a scale is read."""
WHISPER = 0.01
"""The same in GELU's bend, where the answer is linear only for small z."""
KNOWN = 0.02
"""What the neuron adds that tells how large the answer is."""
LEAST_DETAIL = 1 / 16
REACH = 1.0
"""|z| at the edges of a bin in GELU's bend."""


@dataclass(frozen=True)
class NeuronBank:
    """The neurons of one frozen MLP.

    Args:
        fc1, fc2: its layers.
        scale: names the gradient that sums g z, or None where only biases are shared.
        shift: names the gradient that sums g.
        column: scale gradient -> (o,).
    """

    fc1: nn.Linear
    fc2: nn.Linear
    scale: str | None
    shift: str
    column: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Group:
    """Neurons of one bank that read one patch position at one threshold."""

    bank: int
    first: int
    position: int
    threshold: int


class NumberAttack:
    """Neurons set from public images; reads whole images, as all patches of one share its bin.

    Args:
        banks: MLPs in forward order.
        batch: images that the victim is expected to send at once.
        detail: share of the coefficients to read; less detail leaves room for more bins. None
            takes as much as leaves two bins per image, if that is LEAST_DETAIL at least.
    """

    needs_clusters = False

    def __init__(
        self,
        banks: Sequence[NeuronBank],
        prepared: Prepared,
        public: Tensor,
        batch: int,
        detail: float | None = None,
    ) -> None:
        self.banks, self.prepared = banks, prepared
        self.is_bend = banks[0].scale is None
        extra = 2 if self.is_bend else 1
        num = prepared.layout.num_patches
        self.num_read = self._detail(detail, batch, extra)
        size = self.num_read + extra
        places = [(i, f) for i, b in enumerate(banks) for f in range(0, _room(b) - size + 1, size)]
        self.num_bins = len(places) // num
        self.groups = [
            Group(bank, first, index % num, index // num)
            for index, (bank, first) in enumerate(places[: self.num_bins * num])
        ]
        tags = prepared.tag_values(public)[:, 0]
        self.edges = top_edges(tags, self.num_bins, batch)
        self.top = float(tags.max()) + 0.5
        strength = 1 / (len(places) * size * SHARPNESS * 3)
        with torch.no_grad():
            for group in self.groups:
                self._write(group, strength)

    def images(self, update: dict[str, Tensor]) -> list[Tensor]:
        """Coefficients (patches, n) of every bin that holds something."""
        per_bin = self._answers(update)  # (bins, patches, 1 + read), weights first
        sizes = per_bin[..., 0].abs().amax(1)
        kept = sizes > OPEN * sizes.max()
        num, full = self.prepared.layout.num_patches, len(self.prepared.basis)
        found = []
        for values in per_bin[kept]:
            coefficients = torch.zeros(num, full)
            coefficients[:, : self.num_read] = values[:, 1:].float()
            found.append(coefficients)
        return found

    def _detail(self, share: float | None, batch: int, extra: int) -> int:
        rooms, num = [_room(bank) for bank in self.banks], self.prepared.layout.num_patches
        full = len(self.prepared.basis)
        most = min(full, _most_detail(rooms, num, extra))
        if share is not None:
            return min(most, max(1, round(share * full)))
        shared = min(full, _most_detail(rooms, num * (1 if batch == 1 else 2 * batch), extra))
        return shared if shared >= LEAST_DETAIL * full else most

    def _write(self, group: Group, strength: float) -> None:
        layout, bank = self.prepared.layout, self.banks[group.bank]
        slope, centre = self._slope(group.threshold)
        closed = 10 + SPREAD * slope  # no larger: float32 would lose the pixels
        weights = {layout.tags.start: slope, **layout.mask(group.position, closed)}
        constant = -2 * closed - slope * centre
        size = self.num_read + (2 if self.is_bend else 1)
        lines = layout.reading(weights, constant).repeat(size, 1)
        if self.is_bend:
            lines[1] = layout.reading(weights, constant + KNOWN)
        for index in range(self.num_read):
            pixel = {layout.pixels.start + index: self._gain(index)}
            lines[size - self.num_read + index] += layout.reading(pixel)
        bank.fc1.weight[group.first : group.first + size] = lines
        bank.fc2.weight[layout.loss, group.first : group.first + size] = strength

    def _slope(self, threshold: int) -> tuple[float, float]:
        """A and c of z = A (s - c): a step at the bin's lower edge, or a bend across the bin."""
        edge = float(self.edges[threshold])
        if not self.is_bend:
            return SHARPNESS, edge
        last = threshold + 1 == len(self.edges)
        upper = self.top if last else float(self.edges[threshold + 1])
        # The lowest edge of even bins lies far below all values; its bend begins at -3.
        edge = max(edge, min(-3.0, upper - 1))
        return 2 * REACH / (upper - edge), (upper + edge) / 2

    def _gain(self, index: int) -> float:
        loudness = WHISPER if self.is_bend else LOUDNESS
        return loudness / float(self.prepared.spread[index])

    def _answers(self, update: dict[str, Tensor]) -> Tensor:
        """(bins, patches, 1 + read): the strength of a bin, then the coefficients."""
        size = self.num_read + (2 if self.is_bend else 1)
        shape = (self.num_bins, self.prepared.layout.num_patches, size)
        shifts, totals = torch.zeros(2, *shape, dtype=torch.float64).unbind(0)
        for group in self.groups:
            here, bank = (group.threshold, group.position), self.banks[group.bank]
            part = slice(group.first, group.first + size)
            shifts[here] = update[bank.shift].double()[part]
            if bank.scale is not None:
                slope, edge = self._slope(group.threshold)
                total = bank.column(update[bank.scale].double())[part]
                totals[here] = total + slope * edge * shifts[here]  # Σ g (A s + α p)
        if self.is_bend:
            strength = (shifts[..., 1] - shifts[..., 0]) / KNOWN
            values = (shifts[..., 2:] - shifts[..., :1]) / _nonzero(strength[..., None])
        else:
            shifts[:-1] -= shifts[1:].clone()
            totals[:-1] -= totals[1:].clone()
            ratios = totals / _nonzero(shifts)
            strength, values = shifts[..., 0], ratios[..., 1:] - ratios[..., :1]
        gains = torch.tensor([self._gain(i) for i in range(self.num_read)]).double()
        return torch.cat([strength[..., None], values / gains], -1)


def _room(bank: NeuronBank) -> int:
    return int(bank.fc1.weight.shape[0])


def _most_detail(rooms: Sequence[int], num_groups: int, extra: int) -> int:
    """The most coefficients per group of neurons that leave room for so many groups."""
    size = sum(rooms) // num_groups
    while size > extra and sum(room // size for room in rooms) < num_groups:
        size -= 1
    return max(0, size - extra)


def _nonzero(values: Tensor) -> Tensor:
    return torch.where(values == 0, torch.inf, values)
