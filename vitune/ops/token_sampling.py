"""dyᵀx from a sample of the tokens: an unbiased estimate that keeps the important tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_TOKENS = 64
"""Fewer are never drawn: such a small product costs nothing, and part of it is all noise."""

NEGLIGIBLE = 1e-6
"""Weight, relative to the mean, of a token without a gradient: it can be drawn, and adds 0."""


def sample_tokens(grad: Tensor, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Some rows of dy and x, with those of dy weighted: their dyᵀx is an unbiased estimate.

    Token t is kept with probability π_t = min(1, c |dy_t| |x_t|), c such that Σ π_t is the number
    of tokens wanted, and weighs 1/π_t. Large tokens are therefore always kept with weight 1. One
    random offset draws the others at even steps of Σ π_t, so every image contributes. Nothing waits
    for the device.

    Shapes: grad (n, o); x (n, i); returns (m, o) and (m, i), m = max(⌈share·n⌉, MIN_TOKENS); both
        unchanged if that is n or more.
    Source: column-row sampling for approximate products (Drineas, Kannan and Mahoney 2006), with
        some rows kept with certainty as in WTA-CRS (NeurIPS 2023). Deviation: one systematic draw
        without replacement instead of independent ones.
    """
    num_tokens = len(x)
    num_kept = max(math.ceil(share * num_tokens), MIN_TOKENS)
    if num_kept >= num_tokens:
        return grad, x
    chances = _chances(grad, x, num_kept)
    ends = chances.cumsum(0)
    ends = ends * (num_kept / ends[-1])  # rounding must not put the last mark past the end
    marks = torch.arange(num_kept, device=x.device) + torch.rand((), device=x.device)
    kept = torch.searchsorted(ends, marks.to(ends.dtype)).clamp_(max=num_tokens - 1)
    weights = chances[kept].reciprocal().to(torch.float32)
    return (grad[kept] * weights[:, None]).to(grad.dtype), x[kept]


def _chances(grad: Tensor, x: Tensor, num_kept: int) -> Tensor:
    """π (n,) in double precision.

    Take the largest c: it rises with every token that is correctly kept with certainty, and falls
        from there on.
    """
    # |dy||x| is the size of a token's outer product: chances in proportion to it give the least
    # variance among all that keep the estimate unbiased.
    sizes = _lengths(grad) * _lengths(x)
    sizes = sizes + (sizes.mean() * NEGLIGIBLE + torch.finfo(sizes.dtype).tiny)
    from_largest = sizes.sort(descending=True).values
    rest = from_largest.flip(0).cumsum(0).flip(0)[:num_kept]  # the j-th largest and later ones
    wanted = num_kept - torch.arange(num_kept, device=x.device)
    return ((wanted / rest).max() * sizes).clamp(max=1)


def _lengths(rows: Tensor) -> Tensor:
    """|row| in double precision; float16 holds no length above 65,504."""
    dtype = torch.float32 if rows.dtype == torch.float16 else None
    return torch.linalg.vector_norm(rows, dim=1, dtype=dtype).double()
