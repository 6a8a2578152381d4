"""What the device multiplies in hardware, and which number format is requested."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


@functools.cache
def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has bfloat16 matrix products (AVX-512 BF16 or AMX)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def in_autocast_dtype(x: Tensor) -> Tensor:
    """`x` in autocast's number format, if autocast is on for its device."""
    device_type = x.device.type
    if not torch.amp.is_autocast_available(device_type):
        return x
    if not torch.is_autocast_enabled(device_type):
        return x
    return x.to(torch.get_autocast_dtype(device_type))


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Within the context autocast is off, on the devices that have it."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
