"""A call that the caller's modes do not reach, and that leaves them as they were."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from vitune.ops import usual_modes

AUTOCAST = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("around", [nullcontext, AUTOCAST, partial(AUTOCAST, enabled=False)])
def test_steps_within_see_the_weights_of_the_step_before(
    around: Callable[[], AbstractContextManager[object]],
) -> None:
    """Autocast keeps cast weights until its outermost context ends."""
    weight, x = torch.nn.Parameter(torch.zeros(2, 2)), torch.ones(1, 2)
    with around(), usual_modes():
        for step in range(1, 4):
            weight.data.fill_(step)
            with AUTOCAST():
                assert F.linear(x, weight).tolist() == [[2.0 * step] * 2]


def test_modes_are_the_usual_ones_within_and_the_callers_after() -> None:
    @usual_modes()
    def seen() -> tuple[object, ...]:
        x = torch.ones(1, requires_grad=True) * 2
        return x.dtype, x.requires_grad, x.is_inference(), torch.is_autocast_enabled("cpu")

    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), AUTOCAST():
            assert seen() == (torch.float32, True, False, False)
            assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
            with pytest.raises(KeyError), usual_modes():
                raise KeyError
            assert torch.get_default_dtype() == torch.float64
            assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert not torch.is_autocast_enabled("cpu") and not torch.is_inference_mode_enabled()
