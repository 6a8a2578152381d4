"""Attention by plain products against PyTorch's own, values and gradients."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vitune.ops import attention, attention_reference, prefers_attention

MODULE: Any = sys.modules["vitune.ops.attention"]


def heads(b: int, h: int, n: int, m: int, d: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(
        torch.randn(b, h, length, d, dtype=torch.float64).to(dtype).requires_grad_()
        for length in (n, m, m)
    )


def values_and_gradients(function: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    result = function(*inputs)
    weights = torch.linspace(-1, 1, result.numel()).view(result.shape).to(result.dtype)
    return [result, *torch.autograd.grad((result * weights).sum(), inputs)]


@settings(deadline=None, max_examples=40)
@given(
    b=st.integers(1, 4), h=st.integers(1, 3), n=st.integers(1, 6), m=st.integers(1, 6),
    d=st.integers(1, 5), chunk=st.sampled_from([1, 20, 1 << 19]),
)  # fmt: skip
def test_any_shape_agrees_with_pytorch(b: int, h: int, n: int, m: int, d: int, chunk: int) -> None:
    inputs = heads(b, h, n, m, d, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "SCORES_PER_THREAD", chunk)
        found = values_and_gradients(attention, inputs)
    expected = values_and_gradients(F.scaled_dot_product_attention, inputs)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_reference_is_the_formula_of_pytorch() -> None:
    inputs = heads(2, 3, 4, 5, 6, torch.float64)
    torch.testing.assert_close(
        attention_reference(*inputs), F.scaled_dot_product_attention(*inputs)
    )


def test_gradients_agree_with_finite_differences() -> None:
    assert torch.autograd.gradcheck(attention, heads(2, 2, 3, 4, 2, torch.float64))


def test_bf16_is_within_a_percent() -> None:
    inputs = heads(2, 3, 50, 50, 16, torch.float64)
    exact = values_and_gradients(F.scaled_dot_product_attention, inputs)
    rounded = tuple(value.detach().bfloat16().requires_grad_() for value in inputs)
    for mine, theirs in zip(values_and_gradients(attention, rounded), exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - theirs).norm() / theirs.norm() < 0.01


def test_only_q_k_and_v_are_kept() -> None:
    inputs = heads(2, 2, 5, 5, 4, torch.float64)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        attention(*inputs)
    assert sorted(t.data_ptr() for t in kept) == sorted(t.data_ptr() for t in inputs)


@pytest.mark.parametrize("power", [1, 2])
def test_a_second_derivative_is_that_of_the_reference(power: int) -> None:
    found, inputs = [], heads(1, 1, 3, 3, 2, torch.float64)
    for function in (attention, attention_reference):
        total = (function(*inputs) ** power).sum()
        (first,) = torch.autograd.grad(total, inputs[0], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), inputs))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize(("b", "h", "n", "m"), [(0, 2, 3, 3), (2, 0, 3, 3), (2, 2, 0, 3)])
def test_nothing_to_attend_is_accepted(b: int, h: int, n: int, m: int) -> None:
    inputs = heads(b, h, n, m, 4, torch.float64)
    found = values_and_gradients(attention, inputs)
    expected = values_and_gradients(F.scaled_dot_product_attention, inputs)
    for own, theirs in zip(found, expected, strict=True):
        assert own.shape == theirs.shape
        torch.testing.assert_close(own, theirs)


@pytest.mark.parametrize(
    ("dtype", "tokens", "has_instructions", "expected"),
    [
        (torch.bfloat16, 8, True, True),
        (torch.bfloat16, 8, False, False),
        (torch.float32, 8, True, False),
        (torch.bfloat16, 1025, True, False),
    ],
)
def test_rule_of_choice(
    dtype: torch.dtype, tokens: int, has_instructions: bool, expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(MODULE, "cpu_multiplies_bf16", lambda: has_instructions)
    assert prefers_attention(*heads(1, 1, tokens, tokens, 2, dtype)) is expected


def test_two_dimensional_inputs_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "cpu_multiplies_bf16", lambda: True)
    flat = torch.zeros(4, 2, dtype=torch.bfloat16)
    assert not prefers_attention(flat, flat, flat)
