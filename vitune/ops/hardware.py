"""What the device multiplies in hardware, and which number format is requested."""

from __future__ import annotations

import functools
import time
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


EMULATED_FROM = 4
"""A product in fewer bits that takes this many times as long as in float32 is emulated. Where
processors multiply bfloat16 it takes about half as long; where they do not, 40 to 100 times."""

_TRIED_SIZE = 256
"""Rows and columns of the matrices that are multiplied to find out: milliseconds in float32."""


@functools.cache
def slowdown(dtype: torch.dtype, device_type: str) -> float:
    """How many times as long a matrix product takes in `dtype` as in float32; 1 but on a CPU.

    Measured once per process, the fastest of five products each: at most half a second.
    """
    if device_type != "cpu" or dtype == torch.float32:
        return 1.0
    return _fastest_product(dtype) / _fastest_product(torch.float32)


def _fastest_product(dtype: torch.dtype) -> float:
    """Seconds."""
    matrix = torch.ones(_TRIED_SIZE, _TRIED_SIZE, dtype=dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return min(seconds)


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
