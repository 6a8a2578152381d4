"""The exported network: with its preprocessing in front, whole or cut at its exits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vitune.backbones import logits_of
from vitune.errors import AdapterError, one_line
from vitune.exits import Exit
from vitune.preprocessing import Preprocessing

MAX_BATCH = 1024
EXAMPLE_BATCH = 2
"""Not 1: torch.export would treat a batch of one as a constant."""


class Deployed(nn.Module):
    """logits = network((images / 255 - mean) / std).

    Shapes: images (b, h, w, 3) uint8, resized and cropped already -> (b, c) float32.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self.size = network, preprocessing.image_size
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("offset", (mean / std).view(1, 3, 1, 1))

    def example(self) -> Tensor:
        """An input to trace with."""
        return torch.zeros(EXAMPLE_BATCH, *self.size, 3, dtype=torch.uint8)

    def pixels(self, images: Tensor) -> Tensor:
        """The network's input, with the arithmetic of `vitune.data.normalise`.

        Shapes: (b, h, w, 3) uint8 -> (b, 3, h, w) float32.
        """
        return images.permute(0, 3, 1, 2).float() * self.scale - self.offset

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.network(self.pixels(images))).float()


class Segment(nn.Module):
    """The part of a network from one exit to the next.

    The whole network is traced, with tokens inserted after `start` and taken out after `end`. The
    parts before and after are then unused, and the exporter drops them: no architecture's forward
    pass is rewritten here.

    Args:
        start: the exit this segment follows; None for the first segment, which takes images.
        end: the exit this segment ends with; None for the last segment.

    Shapes: images or tokens (b, n, d) -> logits (b, c) and, except for the last, tokens (b, n, d).
    """

    def __init__(self, whole: Deployed, start: Exit | None, end: Exit | None) -> None:
        super().__init__()
        self.whole, self.start, self.end = whole, start, end

    def forward(self, given: Tensor) -> Any:
        network = self.whole.network
        if self.start is None:
            pixels = self.whole.pixels(given)
        else:
            pixels = given.new_zeros(given.shape[0], 3, *self.whole.size)
        with _cut(network, self.start, self.end, given) as reached:
            logits = logits_of(network(pixels)).float()
        if self.end is None:
            return logits
        return self.end.head(reached[0]).float(), reached[0]


@contextmanager
def _cut(
    network: nn.Module, start: Exit | None, end: Exit | None, tokens: Tensor
) -> Iterator[list[Tensor]]:
    """Within: the block of `start` returns `tokens`; yields those from the block of `end`."""
    reached: list[Tensor] = []

    def begin(_: nn.Module, __: Any, output: Any) -> Any:
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        reached.append(output[0] if isinstance(output, tuple) else output)

    handles = [
        network.get_submodule(at.block).register_forward_hook(hook)
        for at, hook in ((start, begin), (end, keep))
        if at is not None
    ]
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()


def segments(whole: Deployed, exits: Sequence[Exit]) -> list[tuple[Segment, Tensor]]:
    """The network cut after every exit, each part with an example input."""
    given, found = whole.example(), []
    for start, end in zip((None, *exits), (*exits, None), strict=True):
        part = Segment(whole, start, end).eval()
        found.append((part, given))
        with torch.no_grad():
            if end is not None:
                given = part(given)[1]
    return found


def traced(module: nn.Module, example: Tensor) -> ExportedProgram:
    """The module as a graph for any number of images from 1 to MAX_BATCH.

    Raises:
        AdapterError: torch.export cannot trace it, or only for one batch size.
    """
    batch = ({0: Dim("batch", min=1, max=MAX_BATCH)},)
    fast = torch.backends.mha.get_fastpath_enabled()
    # The fused encoder layer of nn.TransformerEncoder has no counterpart outside PyTorch.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module.eval(), (example,), dynamic_shapes=batch)
    except Exception as error:  # torch.export's errors have no common class
        raise AdapterError(
            f"export: got a network that torch.export cannot trace ({one_line(error)[:300]}), "
            "expected one graph for any batch. A method that merges gives the plain backbone."
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
