"""RLRR computed as published, as a reference: every W' in the graph, attention by hand.

W' = W + s_out ⊙ W ⊙ s_in is built by elementwise products that autograd keeps, q, k and v are
separate linears, and the softmax of all scores and every activation are kept. With `fused`,
attention uses `F.scaled_dot_product_attention` as in timm, so that a comparison does not measure
what any user has anyway.

Source: RLRR (CVPR 2024) eq. 5 and its description of where the vectors act.
"""

from __future__ import annotations

import math

import torch
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.errors import BackboneError

NAME = "rlrr-textbook"


class TextbookLinear(nn.Module):
    """y = x (W + s_out ⊙ W ⊙ s_in)ᵀ + b + f.

    Shapes: scale_out (o, 1); scale_in (1, i); shift (o,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        num_out, num_in = weight.shape
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.scale_out = nn.Parameter(_uniform(math.sqrt(6), num_out, 1))
        self.scale_in = nn.Parameter(_uniform(math.sqrt(6 / num_in), 1, num_in))
        self.shift = nn.Parameter(torch.zeros(num_out))

    def forward(self, x: Tensor) -> Tensor:
        changed = self.weight * self.scale_out * self.scale_in + self.weight  # (o, i)
        return F.linear(x, changed, self.bias + self.shift)


class TextbookAttention(nn.Module):
    """softmax(q kᵀ / √d) v, its four linears rescaled; the scores in the graph unless `fused`."""

    def __init__(self, base: Attention, fused: bool = False) -> None:
        super().__init__()
        self.num_heads, self.fused = base.num_heads, fused
        weights, biases = base.qkv.weight.chunk(3), base.qkv.bias.chunk(3)
        self.q, self.k, self.v = map(TextbookLinear, weights, biases)
        self.proj = TextbookLinear(base.proj.weight, base.proj.bias)

    def forward(self, x: Tensor, **_: None) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (b, h, n, d/h)
            for linear in (self.q, self.k, self.v)
        )
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)  # (b, h, n, d/h)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (b, h, n, n)
            mixed = scores.softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))  # (b, n, d)


class TextbookScaleShift(nn.Module):
    """γ ⊙ f(x) + β as two more elementwise operations in the graph."""

    def __init__(self, base: nn.Module, width: int) -> None:
        super().__init__()
        self.base = base
        self.scale = nn.Parameter(torch.randn(width) * 0.02 + 1)
        self.shift = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y * self.scale + self.shift


def textbook(model: nn.Module, *, fused: bool = False) -> nn.Module:
    """Change `model` in place to RLRR as published, with the head trainable and the rest frozen.

    Args:
        fused: PyTorch's attention kernel instead of products and a softmax.

    Raises:
        BackboneError: not a plain timm ViT with a fused, biased qkv.
    """
    if not isinstance(model, VisionTransformer) or not _has_biased_qkv(model):
        raise BackboneError(
            f"{NAME}: got backbone {type(model).__name__!r}, expected a plain timm ViT with "
            "biases. Leave the method out for this backbone."
        )
    model.requires_grad_(False)
    width = model.embed_dim
    model.patch_embed = TextbookScaleShift(model.patch_embed, width)
    model.norm = TextbookScaleShift(model.norm, width)
    for block in model.blocks:
        block.attn = TextbookAttention(block.attn, fused)
        block.norm1 = TextbookScaleShift(block.norm1, width)
        block.norm2 = TextbookScaleShift(block.norm2, width)
        block.mlp.fc1 = TextbookLinear(block.mlp.fc1.weight, block.mlp.fc1.bias)
        block.mlp.fc2 = TextbookLinear(block.mlp.fc2.weight, block.mlp.fc2.bias)
    model.head.requires_grad_(True)
    return model


def _has_biased_qkv(model: VisionTransformer) -> bool:
    first = model.blocks[0]
    attention = getattr(first, "attn", None)
    return isinstance(attention, Attention) and attention.qkv.bias is not None


def _uniform(bound: float, *shape: int) -> Tensor:
    return (torch.rand(shape) * 2 - 1) * bound
