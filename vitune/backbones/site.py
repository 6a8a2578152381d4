"""The record of one module in a network where a method may act."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = (
    "patch_embed",
    "norm1",
    "qkv",
    "q",
    "k",
    "v",
    "attn_out",
    "norm2",
    "fc1",
    "fc2",
    "reduction",
    "final_norm",
    "block",
    "head",
    "conv",
)
"""Every role a site can have."""


@dataclass(frozen=True)
class Site:
    """One module a method may replace or wrap.

    Args:
        name: qualified name inside the model that was given (`model.get_submodule(name)`).
        role: one of ROLES. A gated MLP with two first linears has two sites of role `fc1`; a
            distilled model has two of role `head`.
        block: index over depth, through all stages of a hierarchical model; None outside blocks.
        num_parts: equal parts in the order of out_features: 3 for a fused q, k, v; 2 for a fused
        k, v, or a fused gate and up projection; 1 otherwise, also if a fused linear makes q, k and
            v head by head or in unequal widths.
        parts: for a `qkv`, what it computes: ("q", "k", "v"), ("k", "v") or ("q", "k"); else empty.
        windowed: the block attends in windows, as Swin does; False outside blocks.
        separate_bias: the attention keeps the biases of this layer as its own parameters
            (`q_bias`, `v_bias`); the layer itself has none.
        direct_weight: the owner reads this layer's `weight` instead of calling the layer, so that a
            replaced `forward` is bypassed; `torch.nn.MultiheadAttention` is such an owner.
    """

    name: str
    role: str
    block: int | None
    num_parts: int = 1
    parts: tuple[str, ...] = ()
    windowed: bool = False
    separate_bias: bool = False
    direct_weight: bool = False
