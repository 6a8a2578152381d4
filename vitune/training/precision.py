"""The number format that a run computes in."""

from __future__ import annotations

import torch
from torch import nn

from vitune.backbones import find_sites
from vitune.errors import BackboneError
from vitune.ops import EMULATED_FROM, cpu_multiplies_bf16, slowdown

NUMBER_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats by the names that `--precision` takes."""

BF16_WIDTH = 128
NO_LAYERS = ("block", "head")
"""Roles of sites that are not layers, or whose width is the number of classes."""


def resolve_precision(asked: str, device_type: str, width: int) -> str:
    """ "fp32", "bf16" or "fp16" for a device and a network of `width` features.

    "auto" is bf16 on a GPU that supports it, else fp16 on a GPU; on a CPU bf16 if the processor has
    instructions for it and the network is at least BF16_WIDTH wide (the narrowest one measured: 1.5
    times as many images a second in the lean step, RLRR, LoRA and full alike), else fp32.
    """
    if asked != "auto":
        return asked
    if device_type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if width >= BF16_WIDTH and cpu_multiplies_bf16() else "fp32"


def emulation_notice(precision: str, device_type: str) -> str:
    """One line if the device has no instructions for products in this number format; else ''."""
    times = slowdown(NUMBER_FORMATS[precision], device_type)
    if times < EMULATED_FROM:
        return ""
    return (
        f"{precision}: this processor has no instructions for it, and a matrix product takes "
        f"{times:.0f} times as long as in fp32. --precision fp32 is faster."
    )


def network_width(model: nn.Module) -> int:
    """The widest width that a layer both takes and returns; 0 for an unknown kind of network.

    A ViT's d: its MLP maps d features to 4d and back, its fused qkv d to 3d.
    """
    try:
        sites = find_sites(model)
    except BackboneError:
        return 0
    modules = [model.get_submodule(site.name) for site in sites if site.role not in NO_LAYERS]
    weights = [
        parameter
        for module in modules
        for parameter in module.parameters(recurse=False)
        if parameter.dim() > 1
    ]
    return max((min(weight.shape[:2]) for weight in weights), default=0)
