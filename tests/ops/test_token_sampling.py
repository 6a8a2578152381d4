"""Sampled tokens: the product is unbiased, large tokens are certain, and what is exact stays so."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from vitune.ops import rescaled_linear, sample_tokens

MODULE: Any = sys.modules["vitune.ops.token_sampling"]
TOKENS = 400


def rows(spread: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """dy (n, 6) and x (n, 5), sizes of dy spread like exp(spread·normal)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (spread * torch.randn(TOKENS, 1, generator=generator)).exp()
    grad = sizes * torch.randn(TOKENS, 6, generator=generator)
    return grad.to(dtype), torch.randn(TOKENS, 5, generator=generator).to(dtype)


def estimates(grad: Tensor, x: Tensor, share: float, draws: int = 4000) -> Tensor:
    """dyᵀx of the sampled rows, draw by draw: (draws, o, i)."""
    torch.manual_seed(0)
    pairs = (sample_tokens(grad, x, share) for _ in range(draws))
    return torch.stack([kept_grad.T.float() @ kept_x.float() for kept_grad, kept_x in pairs])


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_the_mean_over_draws_is_the_product_of_all_tokens(spread, share):
    grad, x = rows(spread)
    found = estimates(grad, x, share)
    standard_error = found.std(0) / len(found) ** 0.5
    off = (found.mean(0) - grad.T @ x).abs() / standard_error.clamp_min(1e-6)
    assert found.std(0).max() > 0
    assert off.max() < 4.5  # 30 entries: 4.5 standard errors happen once in 5,000 times


def test_tokens_that_matter_make_the_error_small():
    grad, x = rows(2.0)
    exact, num_kept = grad.T @ x, TOKENS // 4
    error = (estimates(grad, x, 0.25, 300) - exact).square().mean()
    torch.manual_seed(0)
    some = [torch.randperm(TOKENS)[:num_kept] for _ in range(300)]
    uniform = torch.stack([4 * grad[kept].T @ x[kept] for kept in some])
    assert error < 0.02 * (uniform - exact).square().mean()


def test_a_large_token_is_always_kept_and_weighs_1():
    grad, x = rows(0.0)
    grad[7] *= 1000
    for seed in range(20):
        torch.manual_seed(seed)
        kept, _ = sample_tokens(grad, x, 0.25)
        assert (kept == grad[7]).all(1).sum() == 1


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_as_many_tokens_as_asked_for_and_none_twice(spread):
    grad, x = rows(spread)
    x[:, 0] = torch.arange(TOKENS)
    for seed in range(50):
        torch.manual_seed(seed)
        kept_grad, kept_x = sample_tokens(grad, x, 0.3)
        assert len(kept_grad) == len(kept_x) == 120
        assert len(kept_x[:, 0].unique()) == 120


def test_every_image_gives_its_part():
    """Tokens of equal size are taken at even steps: 100 of 400 means 25 of every 100."""
    x = torch.cat([torch.ones(TOKENS, 1), torch.arange(TOKENS).view(-1, 1) // 100], dim=1)
    for seed in range(20):
        torch.manual_seed(seed)
        _, kept = sample_tokens(torch.ones(TOKENS, 3) / x.norm(dim=1, keepdim=True), x, 0.25)
        per_image = kept[:, 1].long().bincount()
        assert per_image.max() <= 26 and per_image.min() >= 24


def test_few_tokens_are_all_used():
    grad, x = rows(0.0)
    few = MODULE.MIN_TOKENS
    for count, share in ((few, 0.1), (few + 30, 0.99), (TOKENS, 1.0)):
        kept_grad, kept_x = sample_tokens(grad[:count], x[:count], share)
        assert len(kept_grad) == count
        torch.testing.assert_close(kept_grad.T @ kept_x, grad[:count].T @ x[:count])
    assert len(sample_tokens(grad, x, 0.01)[0]) == few


def test_no_gradient_stays_none():
    _, x = rows(0.0)
    kept, _ = sample_tokens(torch.zeros(TOKENS, 6), x, 0.25)
    assert kept.isfinite().all() and not kept.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_number_formats(dtype):
    grad, x = rows(1.0, dtype)
    kept_grad, kept_x = sample_tokens(grad, x, 0.25)
    assert kept_grad.dtype == kept_x.dtype == dtype and len(kept_x) == TOKENS // 4


def test_a_row_longer_than_the_largest_float16():
    """Losses are scaled up in float16: elements of 5,000 fit, 300 of them are too long."""
    grad, x = torch.full((TOKENS, 300), 5e3).half(), torch.ones(TOKENS, 5).half()
    kept_grad, kept_x = sample_tokens(grad, x, 0.25)
    assert kept_grad.dtype == torch.float16
    total = kept_grad.double().T @ kept_x.double()
    torch.testing.assert_close(total, grad.double().T @ x.double(), rtol=1e-3, atol=0)


def linear_gradients(share: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((8, 50, 5), (6, 5), (6,), (6, 1), (3, 1, 5), (6,))
    x, weight, bias, scale_out, scale_in, shift = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    trained = [value.requires_grad_() for value in (x, shift, scale_out, scale_in)]
    y = rescaled_linear(x, weight, bias, scale_out, scale_in, shift, token_share=share)
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum()
    return [y.detach(), *torch.autograd.grad(loss, trained)]


def test_only_the_scales_gradients_are_estimated():
    exact = linear_gradients(1.0)
    torch.manual_seed(0)
    draws = [linear_gradients(0.25) for _ in range(1000)]
    for found, true in zip(draws[0][:3], exact[:3], strict=True):
        assert torch.equal(found, true)
    for number in (3, 4):
        found = torch.stack([draw[number] for draw in draws])
        standard_error = found.std(0) / len(found) ** 0.5
        assert (found.std(0) > 0).any()
        assert ((found.mean(0) - exact[number]).abs() <= 4.5 * standard_error + 1e-9).all()


def test_the_same_seed_draws_the_same_tokens():
    torch.manual_seed(5)
    first = linear_gradients(0.25)
    torch.manual_seed(5)
    assert all(map(torch.equal, first, linear_gradients(0.25)))
