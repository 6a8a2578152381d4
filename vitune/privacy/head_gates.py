"""Images through the classifier's gradient: every method shares its head, a linear probe too.

The tampered backbone puts a coarse copy of the whole image into the class token. With a head of
zeros the gradient of class c's weights is (Σ all features / C - Σ features of class c) / B: against
a class that is not in the batch, what remains is the sum over the images of class c.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitune.errors import BackboneError
from vitune.privacy.prepared import CONSTANT, Prepared

CLOSED = 400.0
OPEN_AT = 100.0
"""GELU(OPEN_AT + z) = OPEN_AT + z: a neuron that is open hands z on."""


class HeadAttack:
    """Writes the copy into a backbone that `prepare` made without copying branches.

    Args:
        model: the bare ViT.

    Raises:
        BackboneError: fewer free channels than patches.
    """

    needs_clusters = False

    def __init__(self, model: nn.Module, prepared: Prepared) -> None:
        vit: Any = model
        self.prepared, layout = prepared, prepared.layout
        slots = range(layout.tags.start, layout.width)
        self.num_read = min(len(slots) // layout.num_patches, len(prepared.basis))
        if self.num_read < 1:
            raise BackboneError(
                f"malicious head: got {len(slots)} free channels, expected at least the "
                f"{layout.num_patches} patches. Give a smaller --image-size."
            )
        self.first = slots.start
        with torch.no_grad():
            vit.blocks[0].attn.proj.weight.zero_()  # no tags
            self._write_mlp(vit.blocks[0].mlp)
            self._write_collector(vit.blocks[-1])
            vit.head.weight.zero_()
            if vit.head.bias is not None:
                vit.head.bias.zero_()

    @property
    def num_bins(self) -> int:
        """Images that can be told apart: one per class."""
        return len(self.prepared.class_weights)

    def _write_mlp(self, mlp: Any) -> None:
        """Coefficient k of patch t goes to a channel of its own; the token's pixels go away."""
        layout = self.prepared.layout
        num, pixels = len(layout.pixels), layout.pixels
        for index, channel in enumerate(pixels):
            line = layout.reading({channel: 1.0})
            mlp.fc1.weight[index], mlp.fc1.weight[num + index] = line, -line
            mlp.fc2.weight[channel, index], mlp.fc2.weight[channel, num + index] = -1, 1
        place = 2 * num
        for patch in range(layout.num_patches):
            mask = layout.mask(patch, CLOSED)
            for index in range(self.num_read):
                weights = {**mask, pixels.start + index: 1.0}
                mlp.fc1.weight[place] = layout.reading(weights, OPEN_AT - 2 * CLOSED)
                mlp.fc2.weight[self._slot(patch, index), place] = 1
                place += 1
            # OPEN_AT itself goes away again: it would drown the constants in LayerNorm.
            mlp.fc1.weight[place] = layout.reading(mask, OPEN_AT - 2 * CLOSED)
            own = slice(self._slot(patch, 0), self._slot(patch + 1, 0))
            mlp.fc2.weight[own, place] = -1
            place += 1

    def _write_collector(self, block: Any) -> None:
        layout = self.prepared.layout
        block.attn.proj.weight.zero_()
        values = block.attn.qkv.weight[2 * layout.width :]
        for slot in range(self.first, self._slot(layout.num_patches, 0)):
            values[slot] = layout.reading({slot: 1.0})
            block.attn.proj.weight[slot, slot] = layout.num_patches + 1

    def _slot(self, patch: int, index: int) -> int:
        return self.first + patch * self.num_read + index

    def images(self, weight: Tensor, bias: Tensor) -> list[Tensor]:
        """Coefficients (patches, n), one for each class in the batch.

        Shapes: weight (c, d); bias (c,), gradients of the head.
        """
        absent = weight.double()[int(bias.argmax())]
        layout, found = self.prepared.layout, []
        for line, share in zip(absent - weight.double(), bias.max() - bias, strict=True):
            if float(share) < 0.1 * float((bias.max() - bias).max()):
                continue
            size = (line[0] + line[2] - line[1] - line[3]) / (4 * CONSTANT)
            token = line / size
            if not token.isfinite().all():  # nothing was sent where the constants stood
                continue
            token = token - token[list(layout.constants)].mean()
            end = self._slot(layout.num_patches, 0)
            values = token[self.first : end].unflatten(0, (layout.num_patches, self.num_read))
            coefficients = torch.zeros(layout.num_patches, len(self.prepared.basis))
            coefficients[:, : self.num_read] = values.float()
            found.append(coefficients)
        return found
