"""Linear centred kernel alignment between two sets of features of the same images."""

from __future__ import annotations

import torch
from torch import Tensor

from vitune.errors import VituneError


def linear_cka(first: Tensor, second: Tensor, *, debiased: bool = False) -> float | None:
    """‖YᵀX‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F) of centred features; None if X or Y does not vary.

    Unchanged by rotations, by one scale for all features and by shifts. For independent features
    the plain value is not near 0 unless there are many more images than features; `debiased`
    replaces each of the three norms with Song et al.'s unbiased HSIC and averages 0 there.

    Shapes: first X (b, d), second Y (b, e), the same images in the same order.

    Raises:
        VituneError: numbers of images that differ, or fewer than 2 (4 with `debiased`).

    Source: Kornblith et al. (ICML 2019) eq. 4; debiased: Song et al. (JMLR 2012) eq. 4.
    """
    least = 4 if debiased else 2
    if len(first) != len(second) or len(first) < least:
        raise VituneError(
            f"features: got {len(first)!r} and {len(second)!r} images, expected the same number, "
            f"at least {least}."
        )
    x, y = _centred(first), _centred(second)
    if debiased:
        xy, xx, yy = _unbiased(x, y), _unbiased(x, x), _unbiased(y, y)
        return xy / (xx * yy) ** 0.5 if xx > 0 and yy > 0 else None
    if len(x) < max(x.shape[1], y.shape[1]):
        x, y = x @ x.T, y @ y.T  # (b, b)
        xy, xx, yy = float((x * y).sum()), float(x.norm()), float(y.norm())
    else:
        xy = float((y.T @ x).square().sum())
        xx, yy = float((x.T @ x).norm()), float((y.T @ y).norm())
    return min(1.0, xy / (xx * yy)) if xx > 0 and yy > 0 else None


def _centred(features: Tensor) -> Tensor:
    """Features minus their mean over images; zeros if only rounding remains."""
    raw = features.double().flatten(1)
    centred = raw - raw.mean(0)
    return centred if centred.norm() > 1e-12 * raw.norm() else torch.zeros_like(raw)


def _unbiased(x: Tensor, y: Tensor) -> float:
    """HSIC_1 = [tr KL + (1ᵀK1)(1ᵀL1) / ((b−1)(b−2)) − 2 · 1ᵀKL1 / (b−2)] / (b (b−3))."""
    num = len(x)
    k, l_ = (x @ x.T).fill_diagonal_(0), (y @ y.T).fill_diagonal_(0)  # (b, b)
    sums_k, sums_l = k.sum(1), l_.sum(1)  # (b,)
    trace = torch.sum(k * l_)
    product = sums_k.sum() * sums_l.sum() / ((num - 1) * (num - 2))
    cross = 2 / (num - 2) * (sums_k @ sums_l)
    return float((trace + product - cross) / (num * (num - 3)))
