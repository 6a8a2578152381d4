"""What the processor multiplies in hardware; fast versions are chosen by it."""

from __future__ import annotations

import functools

import torch


@functools.cache
def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has bfloat16 matrix products (AVX-512 BF16 or AMX)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
