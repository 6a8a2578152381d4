"""Singular value decompositions: exact if affordable, else randomised with a stated error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

OVERSAMPLING = 32
POWER_ITERATIONS = 8


@dataclass(frozen=True)
class Decomposition:
    """A ≈ U diag(σ) Vᵀ with σ in descending order, complete or the leading part.

    Shapes: left U (o, r), values σ (r,), right V (i, r), residuals (r,).

    Args:
        residuals: per triplet sqrt(‖A v − σ u‖² + ‖Aᵀ u − σ v‖²), in the units of A; zeros where
            the decomposition is exact.
        total_energy: ‖A‖_F², the sum over all σ², including those not computed.
        exact: whether all min(o, i) triplets were computed by a direct method.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    residuals: Tensor
    total_energy: float
    exact: bool

    @property
    def rank(self) -> int:
        """How many values are above rounding: σ_j > σ_1 · max(o, i) · ε."""
        if self.values.numel() == 0 or self.values[0] == 0:
            return 0
        longest = max(self.left.shape[0], self.right.shape[0])
        smallest = self.values[0] * longest * torch.finfo(self.values.dtype).eps
        return int((self.values > smallest).sum())

    @property
    def errors(self) -> Tensor:
        """The largest error of each triplet's vectors in radians: asin(residual / gap), else π/2.

        The gap is the distance of σ_j to its neighbours minus their own possible error; the last
        triplet's next value is unknown. Zeros if the decomposition is exact.

        Shapes: result (r,).

        Source: Wedin 1972.
        """
        if self.exact:
            return torch.zeros_like(self.values)
        values, residuals = self.values, self.residuals
        apart = (values[:-1] - residuals[:-1]) - (values[1:] + residuals[1:])  # (r - 1,)
        endless, none = values.new_tensor([math.inf]), values.new_zeros(1)
        gaps = torch.minimum(torch.cat([endless, apart]), torch.cat([apart, none]))
        shares = torch.where(gaps > residuals, residuals / gaps, torch.ones_like(values))
        return shares.clamp(0, 1).asin()

    def energy_rank(self, energy: float) -> int | None:
        """Smallest k with σ_1² + … + σ_k² ≥ energy · ‖A‖_F²; None if too few are known."""
        if self.total_energy == 0:
            return None
        known = self.values if self.exact else self.values[:-1]
        held = known.square().cumsum(0) / self.total_energy
        enough = (held >= energy - 1e-12).nonzero()
        return int(enough[0]) + 1 if len(enough) else None

    def gap(self, k: int) -> float:
        """σ_k − σ_{k+1}; σ_k itself if k is the largest possible."""
        following = self.values[k] if k < len(self.values) else torch.zeros(())
        return float(self.values[k - 1] - following)


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values, descending; wide matrices are transposed, which is faster.

    Shapes: matrix (o, i); result (min(o, i),).
    """
    return torch.linalg.svdvals(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T)


def decompose(matrix: Tensor) -> Decomposition:
    """The thin SVD in the matrix's own precision; wide matrices are transposed, which is faster.

    Shapes: matrix (o, i).
    """
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left_t = torch.linalg.svd(matrix.T, full_matrices=False)
        left = left_t.T
    else:
        left, values, right_t = torch.linalg.svd(matrix, full_matrices=False)
        right = right_t.T
    energy = float(matrix.square().sum())
    return Decomposition(left, values, right, torch.zeros_like(values), energy, exact=True)


def decompose_top(matrix: Tensor, rank: int, *, seed: int = 0) -> Decomposition:
    """The `rank` leading triplets by subspace iteration from a random start, with residuals.

    The global random state is not used. A small residual means that a true singular value is that
    close to σ_j; the error of the vectors also depends on the gap.

    Shapes: matrix (o, i).

    Args:
        rank: triplets wanted, at least 1; no more than min(o, i) are returned.
        seed: seed of the random start.

    Source: randomised range finder with power iterations (Halko, Martinsson, Tropp 2011),
        algorithms 4.4 and 5.1.
    """
    sketch = min(rank + OVERSAMPLING, *matrix.shape)
    generator = torch.Generator(matrix.device).manual_seed(seed)
    start = torch.randn(
        (matrix.shape[1], sketch), dtype=matrix.dtype, device=matrix.device, generator=generator
    )
    found = torch.linalg.qr(matrix @ start).Q  # (o, sketch)
    for _ in range(POWER_ITERATIONS):
        found = torch.linalg.qr(matrix.T @ found).Q  # (i, sketch)
        found = torch.linalg.qr(matrix @ found).Q  # (o, sketch)
    inner = decompose(found.T @ matrix)
    left, values, right = found @ inner.left[:, :rank], inner.values[:rank], inner.right[:, :rank]
    on_left = (matrix @ right - left * values).square().sum(0)  # (r,)
    on_right = (matrix.T @ left - right * values).square().sum(0)  # (r,)
    energy = float(matrix.square().sum())
    residuals = (on_left + on_right).sqrt()
    return Decomposition(left, values, right, residuals, energy, exact=False)
