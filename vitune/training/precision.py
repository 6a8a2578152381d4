"""Which number format a run computes in."""

from __future__ import annotations

import torch

from vitune.ops import cpu_multiplies_bf16

BF16_WIDTH = 128


def resolve_precision(asked: str, device_type: str, width: int) -> str:
    """ "fp32", "bf16" or "fp16" for a device and a network of `width` features.

    "auto" is bf16 on a GPU that has it, else fp16 there; on a CPU bf16 where the processor has
    instructions for it and the network is at least BF16_WIDTH wide (the narrowest one measured: 1.5
    times as many images a second in the lean step, RLRR, LoRA and full alike), else fp32.
    """
    if asked != "auto":
        return asked
    if device_type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if width >= BF16_WIDTH and cpu_multiplies_bf16() else "fp32"
