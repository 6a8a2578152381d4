"""What the device multiplies in hardware, found by asking it and by timing it."""

import platform

import pytest
import torch

from vitune.ops import EMULATED_FROM, cpu_multiplies_bf16, slowdown


def test_float32_and_a_gpu_are_never_slow() -> None:
    assert slowdown(torch.float32, "cpu") == 1
    assert slowdown(torch.bfloat16, "cuda") == 1


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="PyTorch tells instructions of x86 only"
)
def test_time_and_instructions_say_the_same_of_bf16() -> None:
    is_emulated = slowdown(torch.bfloat16, "cpu") >= EMULATED_FROM
    assert is_emulated != cpu_multiplies_bf16()
