"""Recognise a transformer or ConvNeXt block by its parts, and list the parts as sites."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from vitune.backbones import layouts
from vitune.backbones.fused import PARTS, fused_parts
from vitune.backbones.site import Site
from vitune.backbones.structure import find, find_norm, joined, resolve, unwrapped

_PRE_NORM = ("norm1", "qkv", "q", "k", "v", "attn_out", "norm2", "fc1", "fc2")
_POST_NORM = ("qkv", "q", "k", "v", "attn_out", "norm1", "fc1", "fc2", "norm2")


def is_block(module: nn.Module) -> bool:
    """Whether both MLP linears exist, and an attention output or a depthwise convolution."""
    if not _linears(module, "fc1") or not _linears(module, "fc2"):
        return False
    return bool(_linears(module, "attn_out")) or _depthwise(module) is not None


def block_sites(name: str, block: nn.Module, index: int) -> Iterator[Site]:
    """The block itself, then its parts in forward order."""
    depthwise = None if _linears(block, "attn_out") else _depthwise(block)
    windowed = _is_windowed(block)
    yield Site(name, "block", index, windowed=windowed)
    if depthwise is not None:
        yield Site(joined(name, depthwise), "conv", index)
    for role in _POST_NORM if _is_post_norm(block) else _PRE_NORM:
        for part in _parts(block, role, depthwise is not None):
            yield replace(part, name=joined(name, part.name), block=index, windowed=windowed)


def _parts(block: nn.Module, role: str, convolutional: bool) -> list[Site]:
    """The sites of one role, named relative to the block."""
    if role in layouts.NORMS:
        table = layouts.CONV_BLOCK_NORMS if convolutional else layouts.NORMS
        name = find_norm(block, table[role])
        return [] if name is None else [Site(name, role, None)]
    fused = find(block, layouts.FUSED_ATTENTION, nn.MultiheadAttention)
    if role == "qkv" and fused is not None:
        return [Site(fused, "qkv", None, parts=PARTS["qkv"], num_parts=3, direct_weight=True)]
    parts = {name: _fused_parts(block, name, role) for name in _linears(block, role)}
    return [
        Site(
            name,
            role,
            None,
            parts=parts[name][0],
            num_parts=parts[name][1],
            separate_bias=role == "qkv" and _keeps_biases(block),
            direct_weight=_reads_weight(block, role) or (role == "attn_out" and fused is not None),
        )
        for name in _linears(block, role)
    ]


def _linears(block: nn.Module, role: str) -> list[str]:
    """Names of the linear layers of `role` relative to the block; may be empty."""
    for paths in layouts.LINEARS[role]:
        names = [find(block, [path], nn.Linear) for path in paths]
        if all(names):
            return [name for name in names if name is not None]
    return []


def _depthwise(block: nn.Module) -> str | None:
    name = find(block, layouts.DEPTHWISE, nn.Conv2d)
    if name is None:
        return None
    conv = unwrapped(block.get_submodule(name))
    assert isinstance(conv, nn.Conv2d)
    return name if conv.groups == conv.in_channels else None


def _fused_parts(block: nn.Module, name: str, role: str) -> tuple[tuple[str, ...], int]:
    """What a fused attention linear computes, and its number of equal linears."""
    layer = unwrapped(block.get_submodule(name))
    assert isinstance(layer, nn.Linear)
    if role == "qkv":
        owner, _, own_name = name.rpartition(".")
        return fused_parts(unwrapped(block.get_submodule(owner)), layer, own_name)
    if role == "fc1":
        second = unwrapped(block.get_submodule(_linears(block, "fc2")[0]))
        assert isinstance(second, nn.Linear)
        return (), 2 if layer.out_features == 2 * second.in_features else 1
    return (), 1


def _attention(block: nn.Module) -> nn.Module | None:
    found = [resolve(block, path) for path in layouts.ATTENTION]
    return next((unwrapped(hit[1]) for hit in reversed(found) if hit is not None), None)


def _is_windowed(block: nn.Module) -> bool:
    """Swin shifts windows, MaxViT partitions, SAM's local blocks have a window above zero."""
    original, attention = unwrapped(block), _attention(block)
    if getattr(original, "window_size", None):
        return True
    return any(
        hasattr(owner, attribute)
        for owner in (original, attention)
        for attribute in ("shift_size", "partition_size")
    )


def _is_post_norm(block: nn.Module) -> bool:
    """Whether the norm follows attention: Swin v2's, or `norm1` built after `attn`."""
    original = unwrapped(block)
    if getattr(_attention(block), "logit_scale", None) is not None:
        return True
    order = list(original._modules)
    return {"attn", "norm1"} <= set(order) and order.index("attn") < order.index("norm1")


def _keeps_biases(block: nn.Module) -> bool:
    return getattr(_attention(block), "q_bias", None) is not None


def _reads_weight(block: nn.Module, role: str) -> bool:
    """timm's q_bias attention reads `qkv.weight`; torchvision's Swin reads it and `proj.weight`."""
    attention = _attention(block)
    if role == "qkv" and getattr(attention, "q_bias", None) is not None:
        return not getattr(attention, "qkv_bias_separate", False)
    in_torchvision_swin = hasattr(attention, "shift_size") and hasattr(
        attention, "attention_dropout"
    )
    return role in ("qkv", "attn_out") and in_torchvision_swin
