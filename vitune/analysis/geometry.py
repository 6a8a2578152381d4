"""Measures of matrices and subspaces: angles, orthogonality, ranks, relative distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relative_deviation(before: Tensor, after: Tensor) -> float | None:
    """‖after − before‖ / ‖before‖ over all entries; None if only `before` is zero.

    Shapes: any, equal.
    """
    old, new = before.detach().double(), after.detach().double()
    change, norm = float((new - old).norm()), float(old.norm())
    if norm == 0:
        return 0.0 if change == 0 else None
    return change / norm


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Angles θ_1 ≤ … ≤ θ_k in degrees between two subspaces; cos θ are the values of AᵀB.

    Angles below 45 degrees are taken from the sines, the singular values of (I − AAᵀ)B, because a
    cosine near 1 loses half its digits.

    Shapes: first A, second B (n, k), orthonormal columns; result (k,).

    Source: Björck and Golub (1973).
    """
    inner = first.T @ second  # (k, k)
    cosines = torch.linalg.svdvals(inner).clamp(max=1)
    sines = torch.linalg.svdvals(second - first @ inner).clamp(max=1).flip(0)
    small = cosines.square() > 0.5
    return torch.rad2deg(torch.where(small, sines.asin(), cosines.acos()))


def basis_loss(columns: Tensor) -> float:
    """sqrt(Σ_{i≠j} cos²(c_i, c_j) / Σ_ij cos²(c_i, c_j)): 0 for orthogonal columns.

    Shapes: columns (n, k); a zero column counts as orthogonal to all.
    """
    scaled = torch.nn.functional.normalize(columns, dim=0, eps=torch.finfo(columns.dtype).tiny)
    squares = (scaled.T @ scaled).square()  # (k, k)
    total = float(squares.sum())
    off = squares.fill_diagonal_(0).sum()
    return math.sqrt(float(off) / total) if total else 0.0


def effective_rank(values: Tensor) -> float:
    """exp(−Σ p log p) with p = s / Σ s; 0 for the zero matrix.

    Shapes: values s (r,), all singular values of a matrix.

    Source: Roy and Vetterli (2007).
    """
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total else 0.0


def stable_rank(energy: float, largest: float) -> float:
    """‖A‖_F² / s_1², from `energy` = ‖A‖_F² and `largest` = s_1; 0 for the zero matrix."""
    return energy / largest**2 if energy else 0.0
