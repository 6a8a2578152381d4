"""Merging tokens: the fast version is the reference, and a token of size s is s equal ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitune.ops import (
    attention,
    match_tokens,
    merged_tokens,
    merged_tokens_reference,
    sized_attention,
    sized_attention_reference,
    spread_tokens,
)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("num_tokens", "number"), [(2, 1), (7, 2), (8, 4), (9, 4), (16, 1)])
def test_the_fast_version_is_the_reference_with_its_gradient(num_tokens: int, number: int) -> None:
    x, keys = draw(3, num_tokens, 5).requires_grad_(), draw(3, num_tokens, 4)
    sizes = torch.randint(1, 5, (3, num_tokens)).double()
    matching = match_tokens(keys, number)
    found, found_sizes = merged_tokens(x, sizes, matching)
    expected, expected_sizes = merged_tokens_reference(x, sizes, matching)
    assert found.shape == (3, num_tokens - number, 5)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_sizes, expected_sizes)
    grad = draw(*found.shape)
    torch.testing.assert_close(
        *(torch.autograd.grad(y, x, grad, retain_graph=True)[0] for y in (found, expected))
    )
    torch.testing.assert_close(found_sizes.sum(1), sizes.sum(1))


def test_none_merged_is_none_changed() -> None:
    x, sizes = draw(2, 6, 3), torch.ones(2, 6)
    found, found_sizes = merged_tokens(x, sizes, match_tokens(draw(2, 6, 3), 0))
    assert found is x and found_sizes is sizes


def test_the_most_alike_meet() -> None:
    """Token 2 points as 5 does, 4 nearly as 1; the rest are at right angles."""
    keys = torch.eye(6, dtype=torch.float64)[None].clone()
    keys[0, 5] = 3 * keys[0, 2]
    keys[0, 1] = keys[0, 4] + 0.1 * keys[0, 1]
    matching = match_tokens(keys, 2)
    positions = matching.positions(6)[0].tolist()
    assert positions[2] == positions[5] and positions[4] == positions[1]
    assert sorted(set(positions)) == [0, 1, 2, 3]
    one = match_tokens(keys, 1).positions(6)[0].tolist()
    assert one[2] == one[5] and len(set(one)) == 5


def test_the_mean_over_spread_tokens_is_the_mean_over_all() -> None:
    x = draw(2, 9, 4)
    first = match_tokens(x, 3)
    merged, sizes = merged_tokens(x, torch.ones(2, 9).double(), first)
    second = match_tokens(merged, 2)
    merged, sizes = merged_tokens(merged, sizes, second)
    positions = second.positions(6).gather(1, first.positions(9))
    torch.testing.assert_close(spread_tokens(merged, positions).mean(1), x.mean(1))
    torch.testing.assert_close((merged * sizes[..., None]).sum(1) / 9, x.mean(1))


@pytest.mark.parametrize("op", [sized_attention, sized_attention_reference])
def test_a_token_of_size_s_counts_as_s_equal_ones(op: object) -> None:
    q, k, v = draw(2, 3, 4, 8), draw(2, 3, 5, 8), draw(2, 3, 5, 6)
    counts = torch.tensor([1, 3, 1, 2, 1])
    sizes = counts.double().expand(2, -1)
    repeated = [tensor.repeat_interleave(counts, dim=2) for tensor in (k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(q, *repeated)
    torch.testing.assert_close(op(q, k, v, sizes), expected)  # type: ignore[operator]
    plain = op(q, k, v, torch.ones(2, 5).double())  # type: ignore[operator]
    torch.testing.assert_close(plain, torch.nn.functional.scaled_dot_product_attention(q, k, v))


def test_gradients_of_sized_attention_are_the_references() -> None:
    inputs = [draw(2, 2, 4, 6).requires_grad_() for _ in range(3)]
    sizes, grad = torch.randint(1, 4, (2, 4)).double(), draw(2, 2, 4, 6)
    logs = sizes.log()[:, None, None]
    expected = torch.autograd.grad(sized_attention_reference(*inputs, sizes), inputs, grad)
    for result in (sized_attention(*inputs, sizes), attention(*inputs, logs)):
        found = torch.autograd.grad(result, inputs, grad)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_attention_with_a_bias_has_second_gradients() -> None:
    inputs = [draw(1, 1, 3, 2).requires_grad_() for _ in range(3)]
    bias = draw(1, 1, 1, 3)
    assert torch.autograd.gradgradcheck(lambda q, k, v: attention(q, k, v, bias), inputs)
