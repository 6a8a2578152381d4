"""What the device multiplies in hardware, and which number format is requested."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_AUTOCASTING = frozenset(
    kind
    for kind in ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla")
    if torch.amp.is_autocast_available(kind)
)
"""Kinds of device with autocast. Asked once: to ask in a compiled graph breaks it in torch 2.10."""


@functools.cache
def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has bfloat16 matrix products (AVX-512 BF16 or AMX)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def in_autocast_dtype(x: Tensor) -> Tensor:
    """`x` in autocast's number format, if autocast is on for its device."""
    device_type = x.device.type
    if device_type not in _AUTOCASTING or not torch.is_autocast_enabled(device_type):
        return x
    return x.to(torch.get_autocast_dtype(device_type))


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Autocast off within, on the devices that have it."""
    if device_type not in _AUTOCASTING:
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
