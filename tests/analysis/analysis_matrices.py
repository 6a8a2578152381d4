"""Matrices whose singular value decomposition is known because it was chosen."""

from __future__ import annotations

import torch
from torch import Tensor


def orthonormal(size: int, num_columns: int, seed: int) -> Tensor:
    """Random orthonormal columns (size, num_columns)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(
        torch.randn(size, num_columns, dtype=torch.float64, generator=generator)
    ).Q


def composed(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """U diag(σ) Vᵀ."""
    return left @ torch.diag(values.to(left.dtype)) @ right.T
