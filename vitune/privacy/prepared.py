"""A tampered backbone: a malicious server makes the gradients of later layers spell out images.

Every token keeps its patch (as cosine coefficients), a position code, tags of its image, constants
that pin LayerNorm down, and one loss channel through which gates reach the loss. Attention and MLP
either hand a small copy of the token on or are switched off. The design follows PEFTLeak (CVPR
2025); codes have channels of their own here, so that no pixel value is destroyed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitune.backbones import head_name
from vitune.errors import BackboneError

CONSTANT = 300.0
"""Value of the constant channels; they outweigh all pixels in LayerNorm's variance."""
COPY = 0.01
"""Share of the token that a branch hands on: adapters see it, the residual stream hardly grows."""
NUM_TAGS = 20
POSITION = 1.0
ATTENTION_GAP = 60.0
"""By how much a token's own logit beats all others where a head looks at its own token only."""
LOW = 32
"""Cosine coefficients, lowest first, that tags and bins are made of."""


@dataclass(frozen=True)
class Layout:
    """Which channel of a token means what.

    Args:
        width: channels d of a token.
        grid: patches per side.
        patch: pixels per side of a patch.
    """

    width: int
    grid: int
    patch: int

    @property
    def constants(self) -> tuple[int, ...]:
        return (0, 1, 2, 3)  # +, -, +, -: their mean is 0

    @property
    def class_flag(self) -> int:
        return 4

    @property
    def loss(self) -> int:
        return 5

    def position(self, patch: int) -> tuple[int, int]:
        """The two channels that are set at a patch: one for its line, one for its column."""
        return 6 + patch // self.grid, 6 + self.grid + patch % self.grid

    @property
    def tags(self) -> range:
        start = 6 + 2 * self.grid
        return range(start, start + NUM_TAGS)

    @property
    def pixels(self) -> range:
        start = self.tags.stop
        return range(start, min(self.width, start + 3 * self.patch**2))

    @property
    def num_patches(self) -> int:
        return self.grid**2

    def reading(
        self, weights: Mapping[int, float] | tuple[range, Tensor], constant: float = 0.0
    ) -> Tensor:
        """Σ weight · channel + constant as one weight vector over a token.

        The constants take up the rest, so that the weights sum to 0: LayerNorm's mean cancels, and
        the constant shrinks and grows with the token. Shapes: returns (d,).
        """
        vector = torch.zeros(self.width, dtype=torch.float64)
        if isinstance(weights, tuple):
            vector[weights[0].start : weights[0].stop] = weights[1].double()
        else:
            for channel, weight in weights.items():
                vector[channel] += weight
        surplus = vector.sum() / 4
        for index, channel in enumerate(self.constants):
            sign = 1 if index % 2 == 0 else -1
            vector[channel] += sign * constant / (4 * CONSTANT) - surplus
        return vector.float()

    def mask(self, patch: int, height: float) -> dict[int, float]:
        """Weights that read 2·height at tokens of `patch`, at most height elsewhere."""
        line, column = self.position(patch)
        return {line: height / POSITION, column: height / POSITION}


def cosine_basis(patch: int) -> Tensor:
    """Orthonormal basis of a patch, low frequencies and brightness first.

    Shapes: returns (3p², 3, p, p).
    """
    steps = torch.arange(patch, dtype=torch.float64)
    waves = torch.cos(math.pi * (steps + 0.5) * steps[:, None] / patch)  # (frequency, position)
    waves = waves / waves.norm(dim=1, keepdim=True)
    colours = torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]], dtype=torch.float64)
    colours = colours / colours.norm(dim=1, keepdim=True)
    basis = torch.einsum("kc,uy,vx->kuvcyx", colours, waves, waves)
    order = [
        ((1.0 if k == 0 else 1.7) * (u + v), k, u, v)
        for k in range(3)
        for u in range(patch)
        for v in range(patch)
    ]
    return torch.stack([basis[k, u, v] for _, k, u, v in sorted(order)]).float()


@dataclass(frozen=True)
class Prepared:
    """What the server knows of the backbone that it tampered with.

    Args:
        basis: of a patch (n, 3, p, p), as many as channels hold.
        spread: of each coefficient on public images (n,).
        direction: weights over the first coefficients that bins of patches are made of (LOW,).
        tag_directions: the same for tags (NUM_TAGS, LOW).
        class_weights: of the head on the loss channel (c,).
    """

    layout: Layout
    basis: Tensor
    spread: Tensor
    direction: Tensor
    tag_directions: Tensor
    class_weights: Tensor

    def coefficients(self, images: Tensor) -> Tensor:
        """Normalised images (b, 3, h, w) -> coefficients of each patch (b, patches, n)."""
        side, grid = self.layout.patch, self.layout.grid
        patches = images.unfold(2, side, side).unfold(3, side, side)  # (b, 3, g, g, p, p)
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(len(images), grid**2, -1)
        return patches @ self.basis.flatten(1).T

    def patches(self, coefficients: Tensor) -> Tensor:
        """The inverse: (..., n) -> (..., 3, p, p)."""
        return torch.einsum("...n,ncyx->...cyx", coefficients, self.basis)

    def patch_scalar(self, images: Tensor) -> Tensor:
        """What bins of single patches are cut along: (b, patches)."""
        return self.coefficients(images)[..., :LOW] @ self.direction

    def tag_values(self, images: Tensor) -> Tensor:
        """The tags that every token of an image carries: (b, NUM_TAGS)."""
        low = self.coefficients(images)[..., :LOW].sum(1) / (self.layout.num_patches + 1)
        return low @ self.tag_directions.T


def prepare(model: nn.Module, public: Tensor, *, copies: bool, seed: int = 0) -> Prepared:
    """Overwrite a timm ViT's weights with the malicious design.

    Args:
        model: a ViT with class token, position embeddings and square patches; changed in place.
        public: normalised images (b, 3, h, w) like the victim's, which the server owns.
        copies: attention and MLP hand a small copy of every token on (for adapters behind them);
            False switches both off, so that an MLP can be filled with gates.
        seed: of the random directions.

    Raises:
        BackboneError: another architecture, or too few channels.
    Source: PEFTLeak (CVPR 2025) section 4. Deviations: codes, tags and constants in channels of
        their own; cosine coefficients for pixels; GELU(z) - GELU(-z) = z as the MLP's identity.
    """
    vit = _plain_vit(model)
    patch = int(vit.patch_embed.patch_size[0])
    layout = Layout(vit.embed_dim, int(vit.patch_embed.grid_size[0]), patch)
    _require_room(layout, vit)
    generator = torch.Generator().manual_seed(seed)
    basis = cosine_basis(patch)[: len(layout.pixels)]
    num_classes = vit.head.out_features
    signs = -torch.ones(num_classes)
    signs[0] = 1
    found = Prepared(layout, basis, torch.ones(len(basis)), *_directions(generator), signs)
    values = found.coefficients(public)
    found = _scaled(found, values, found.tag_values(public))
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.zero_()
        _write_embedding(vit, layout, basis)
        _write_norms(vit, layout)
        _write_tagger(vit.blocks[0], found)
        for block in vit.blocks[1:-1]:
            if copies:
                _write_copying_attention(block, layout)
        if copies:
            for block in vit.blocks[:-1]:
                _write_copying_mlp(block, layout)
        _write_collector(vit.blocks[-1], layout)
        vit.head.weight.copy_(signs[:, None] * layout.reading({layout.loss: 1.0}))
        # Half of all probability on class 0: gradients of all other classes have one sign, so that
        # a bin with several images holds their mean and nothing cancels.
        if vit.head.bias is not None:
            vit.head.bias[0] = math.log(max(1, num_classes - 1))
    return found


def _plain_vit(model: nn.Module) -> Any:
    needed = ("patch_embed", "pos_embed", "cls_token", "blocks", "norm", "head", "global_pool")
    vit: Any = model
    fits = all(hasattr(model, name) for name in needed) and head_name(model) == "head"
    if not fits or vit.cls_token is None or vit.global_pool != "token":
        raise BackboneError(
            f"malicious backbone: got {type(model).__name__}, expected a timm ViT that reads its "
            "class token, e.g. vit_base_patch16_224. Leave 'malicious' out of --attack."
        )
    return vit


def _require_room(layout: Layout, vit: Any) -> None:
    head_width = layout.width // vit.blocks[0].attn.num_heads
    needed = 2 * layout.grid + 1
    if len(layout.pixels) < LOW or head_width < max(needed, NUM_TAGS) or len(vit.blocks) < 3:
        raise BackboneError(
            f"malicious backbone: got width {layout.width}, {head_width} per head and "
            f"{len(vit.blocks)} blocks for {layout.num_patches} patches, expected at least "
            f"{layout.tags.stop + LOW}, {max(needed, NUM_TAGS)} and 3. Give a smaller --image-size."
        )


def _directions(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(LOW, generator=generator),
        torch.randn(NUM_TAGS, LOW, generator=generator),
    )


def _scaled(found: Prepared, values: Tensor, tags: Tensor) -> Prepared:
    """Directions such that scalars and tags have variance 1 on the public images."""
    spread = values.flatten(0, 1).std(0).clamp_min(1e-3)
    direction = found.direction / spread[:LOW]
    direction = direction / (values[..., :LOW] @ direction).std().clamp_min(1e-6)
    tag_directions = found.tag_directions / tags.std(0).clamp_min(1e-6)[:, None]
    return Prepared(
        found.layout, found.basis, spread, direction, tag_directions, found.class_weights
    )


def _write_embedding(vit: Any, layout: Layout, basis: Tensor) -> None:
    vit.patch_embed.proj.weight[layout.pixels.start : layout.pixels.stop] = basis
    codes = vit.pos_embed[0]  # (1 + patches, d)
    for index, channel in enumerate(layout.constants):
        codes[:, channel] = CONSTANT if index % 2 == 0 else -CONSTANT
    codes[0, layout.class_flag] = POSITION
    for patch in range(layout.num_patches):
        for channel in layout.position(patch):
            codes[1 + patch, channel] = POSITION


def _write_norms(vit: Any, layout: Layout) -> None:
    """LayerNorms undo what the constants make of the variance: x̂ is x up to 0.1 % and its mean."""
    spread = math.sqrt(len(layout.constants) * CONSTANT**2 / layout.width)
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(spread)


def _write_tagger(block: Any, found: Prepared) -> None:
    """Head 0 averages over all tokens and writes the tags of the image into each."""
    layout = found.layout
    values = block.attn.qkv.weight[2 * layout.width :]  # (d, d)
    for index, direction in enumerate(found.tag_directions):
        start = layout.pixels.start
        values[index] = layout.reading((range(start, start + LOW), direction))
        block.attn.proj.weight[layout.tags.start + index, index] = 1


def _write_copying_attention(block: Any, layout: Layout) -> None:
    """Every head looks at its own token only and hands a small copy of it on."""
    heads = block.attn.num_heads
    size = layout.width // heads
    codes = [layout.class_flag, *range(6, 6 + 2 * layout.grid)]
    strength = math.sqrt(ATTENTION_GAP * math.sqrt(size)) / POSITION
    qkv = block.attn.qkv.weight
    for head in range(heads):
        for index, channel in enumerate(codes):
            doubled = math.sqrt(2) if channel == layout.class_flag else 1
            row = layout.reading({channel: strength * doubled})
            qkv[head * size + index] = row
            qkv[layout.width + head * size + index] = row
    qkv[2 * layout.width :] = torch.eye(layout.width)
    block.attn.proj.weight.copy_(COPY * torch.eye(layout.width))


def _write_copying_mlp(block: Any, layout: Layout) -> None:
    eye = torch.eye(layout.width)
    block.mlp.fc1.weight[: layout.width] = eye
    block.mlp.fc1.weight[layout.width : 2 * layout.width] = -eye
    block.mlp.fc2.weight[:, : layout.width] = COPY * eye
    block.mlp.fc2.weight[:, layout.width : 2 * layout.width] = -COPY * eye


def _write_collector(block: Any, layout: Layout) -> None:
    """Head 0 of the last block carries the mean of all loss channels to the class token."""
    block.attn.qkv.weight[2 * layout.width] = layout.reading({layout.loss: 1.0})
    block.attn.proj.weight[layout.loss, 0] = layout.num_patches + 1
