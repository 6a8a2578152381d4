"""What an adaptation did to one weight matrix, seen through its singular value decomposition.

Throughout W = U diag(σ) Vᵀ is the weight before, W' = U' diag(σ') V'ᵀ the weight after, both
(out, in), and ΔW = W' − W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from vitune.analysis.core import Core, core_of
from vitune.analysis.decomposition import (
    Decomposition,
    decompose,
    decompose_top,
    singular_values,
)
from vitune.analysis.geometry import (
    basis_loss,
    effective_rank,
    principal_angles,
    relative_deviation,
    stable_rank,
)
from vitune.analysis.intruders import IntruderRule, Intruders, count_intruders
from vitune.errors import VituneError

EXACT_LIMIT = 1024


@dataclass(frozen=True)
class SubspaceChange:
    """Where the change is, and how far the subspace of the k largest singular values rotated.

    Args:
        k: dimension of the subspace.
        energy: the share of ‖W‖_F² that k was chosen for, in (0, 1]; None if k was given.
        left_share: ‖U_kᵀ ΔW‖_F² / ‖ΔW‖_F², in [0, 1]; a random direction would give k / out.
        right_share: ‖ΔW V_k‖_F² / ‖ΔW‖_F², in [0, 1]; a random direction would give k / in.
        left_degrees: the k principal angles between span U_k and span U'_k, rising, in [0, 90].
        right_degrees: the same between span V_k and span V'_k.
        gap: (σ_k − σ_{k+1}) / σ_1 of W. By Wedin's theorem the largest angle is about
        ‖ΔW‖ / (σ_k − σ_{k+1}): with almost no gap the subspace is hardly defined, and angles are
            large whatever the method does.
        error_degrees: estimated error of the angles, from the residuals of the randomised SVD over
            the gap; None if the SVD is exact.
    """

    k: int
    energy: float | None
    left_share: float
    right_share: float
    left_degrees: tuple[float, ...]
    right_degrees: tuple[float, ...]
    gap: float
    error_degrees: float | None

    @property
    def mean_degrees(self) -> float:
        """Mean of all 2 k principal angles, degrees."""
        return (self.mean_left_degrees + self.mean_right_degrees) / 2

    @property
    def mean_left_degrees(self) -> float:
        """Mean of the k angles between the left subspaces, degrees."""
        return math.fsum(self.left_degrees) / self.k

    @property
    def mean_right_degrees(self) -> float:
        """Mean of the k angles between the right subspaces, degrees."""
        return math.fsum(self.right_degrees) / self.k


@dataclass(frozen=True)
class BasisLoss:
    """How far the singular bases of W are from orthogonal after the method's map; 0 is orthogonal.

    For columns c_1 … c_k scaled to length 1 and their cosines G = CᵀC the loss is
    sqrt(Σ_{i≠j} G_ij² / Σ_ij G_ij²), in [0, 1): 0 for orthogonal columns, towards 1 for parallel.

    Weights alone do not show on which side a method multiplied: a square W of full rank is mapped
    to any W' by some left map and by some right map. So both readings are given. Read as
    W' = M_l W, the left basis becomes M_l U = W' V diag(1/σ): `left` is the loss of the columns of
    W' V. Read as W' = W M_rᵀ, the right basis becomes M_r V = W'ᵀ U diag(1/σ): `right` is the loss
    of the columns of W'ᵀ U. `left` is 0 exactly if V still is a right singular basis of W' (an
    orthogonal left map, or a change of singular values only), and `right` likewise for U. For a
    small symmetric map on one side (SSF's scales) that side has the smaller loss, since each of the
    other side's cosines is that side's own times (σ_i/σ_j + σ_j/σ_i) / 2 ≥ 1. Only the leading
    `num_vectors` directions, those that hold the requested energy of W, count: later directions
    have so small a σ that any change rotates them.

    Source: the argument of RLRR (CVPR 2024) section 3.2 against one-sided methods, as a number.
    """

    left: float
    right: float
    num_vectors: int


@dataclass(frozen=True)
class WeightChange:
    """Every figure of `compare_weights`; None if a figure needs values that were not computed.

    Args:
        shape: (out, in).
        exact: full SVDs in float64; otherwise the figures come from the leading triplets of a
        randomised SVD, and those that need the whole spectrum are None. Intruders are counted
            correctly in either case.
        relative_deviation: ‖ΔW‖_F / ‖W‖_F; None if W is zero and W' is not.
        values_before: σ, descending; only the leading ones if not exact.
        values_after: σ'.
        spectrum_distortion: ‖σ' − σ‖ / ‖σ‖, at most `relative_deviation` (Mirsky's theorem).
        effective_rank: exp(−Σ p log p) with p = s / Σ s over the singular values s of ΔW (Roy and
        Vetterli 2007); 0 if nothing changed.
        stable_rank: ‖ΔW‖_F² / s_1²; 0 if nothing changed.
        subspaces: one entry for every k, then the one for the energy; k above the rank of W or W'
            are left out, since their subspaces would be arbitrary.
        values_error: largest residual of a randomised triplet over σ_1: every value is that close
            to a true one, in units of σ_1; None if exact.
        core: the change in the bases of W; None if nothing changed or not exact.
    """

    shape: tuple[int, int]
    exact: bool
    relative_deviation: float | None
    values_before: tuple[float, ...]
    values_after: tuple[float, ...]
    spectrum_distortion: float | None
    effective_rank: float | None
    stable_rank: float
    subspaces: tuple[SubspaceChange, ...]
    basis_loss: BasisLoss | None
    intruders: Intruders
    values_error: float | None
    core: Core | None

    def subspace(self, k: int) -> SubspaceChange | None:
        """The entry for a requested k; None if the matrix has no such subspace."""
        return next((part for part in self.subspaces if part.energy is None and part.k == k), None)


@dataclass(frozen=True)
class ChangedWeight:
    """One changed weight and its figures.

    Args:
        name, role, block, part: as in `WeightPair`.
        relative_deviation: ‖after − before‖ / ‖before‖; None if only the weight before is zero.
        change: the figures of a matrix; None for a vector, which has only the deviation.
    """

    name: str
    role: str
    block: int | None
    part: str | None
    relative_deviation: float | None
    change: WeightChange | None


def compare_weights(
    before: Tensor,
    after: Tensor,
    *,
    top: Sequence[int] = (1, 8, 64),
    energy: float = 0.9,
    exact_limit: int = EXACT_LIMIT,
    seed: int = 0,
    intruders: IntruderRule | None = None,
) -> WeightChange:
    """The change from W to W' through their singular value decompositions.

    Shapes: before, after (o, i).

    Args:
        top: subspace dimensions k, each at least 1.
        energy: part of ‖W‖_F² for one more k, in (0, 1].
        exact_limit: matrices with min(o, i) up to this are decomposed exactly, in float64; larger
            ones by a randomised SVD of the leading max(top) triplets.
        seed: seed of the randomised SVD.
        intruders: what counts as an intruder dimension; None is `IntruderRule()`.

    Raises:
        VituneError: shapes that differ or are not matrices, values that are not finite, or `top`
            or `energy` out of range.
    """
    _check(before, after, top, energy)
    top, energy = [int(k) for k in top], float(energy)
    old, new = before.detach().double(), after.detach().double()
    exact, rule = min(old.shape) <= exact_limit, intruders or IntruderRule()
    if exact:
        svd_old, svd_new = decompose(old), decompose(new)
    else:
        most = max(*top, rule.num_vectors) + 1
        svd_old = decompose_top(old, most, seed=seed)
        svd_new = decompose_top(new, most, seed=seed + 1)
    delta = new - old
    delta_values = singular_values(delta) if exact else decompose_top(delta, 1, seed=seed).values
    wanted: list[tuple[int, float | None]] = [(k, None) for k in top]
    energy_rank = svd_old.energy_rank(energy)
    if energy_rank is not None:
        wanted.append((energy_rank, energy))
    most = min(svd_old.rank, svd_new.rank)
    subspaces = _subspaces(svd_old, svd_new, delta, [part for part in wanted if part[0] <= most])
    return WeightChange(
        shape=(old.shape[0], old.shape[1]),
        exact=exact,
        relative_deviation=relative_deviation(old, new),
        values_before=tuple(svd_old.values.tolist()),
        values_after=tuple(svd_new.values.tolist()),
        spectrum_distortion=relative_deviation(svd_old.values, svd_new.values) if exact else None,
        effective_rank=effective_rank(delta_values) if exact else None,
        stable_rank=stable_rank(float(delta.square().sum()), float(delta_values[0])),
        subspaces=subspaces,
        basis_loss=None if energy_rank is None else _basis_loss(svd_old, new, energy_rank),
        intruders=count_intruders(old, new, svd_old, svd_new, rule),
        values_error=None if exact else _values_error(svd_old, svd_new),
        core=core_of(svd_old, delta),
    )


def _subspaces(
    old: Decomposition,
    new: Decomposition,
    delta: Tensor,
    wanted: Sequence[tuple[int, float | None]],
) -> tuple[SubspaceChange, ...]:
    """One entry for every (k, energy)."""
    total = float(delta.square().sum()) or 1.0
    left = (old.left.T @ delta).square().sum(1).cumsum(0) / total  # (r,)
    right = (delta @ old.right).square().sum(0).cumsum(0) / total  # (r,)
    return tuple(
        SubspaceChange(
            k=k,
            energy=energy,
            left_share=min(1.0, float(left[k - 1])),
            right_share=min(1.0, float(right[k - 1])),
            left_degrees=tuple(principal_angles(old.left[:, :k], new.left[:, :k]).tolist()),
            right_degrees=tuple(principal_angles(old.right[:, :k], new.right[:, :k]).tolist()),
            gap=old.gap(k) / float(old.values[0]),
            error_degrees=None if old.exact else _angle_error(old, new, k),
        )
        for k, energy in wanted
    )


def _angle_error(old: Decomposition, new: Decomposition, k: int) -> float:
    """Wedin's bound asin(‖residuals‖ / gap) of both in degrees; 90 if it does not apply."""
    total = 0.0
    for svd in (old, new):
        residual, gap = float(svd.residuals[:k].norm()), svd.gap(k)
        total += 90.0 if residual >= gap else math.degrees(math.asin(residual / gap))
    return min(90.0, total)


def _values_error(old: Decomposition, new: Decomposition) -> float:
    largest = max(float(old.residuals.max()), float(new.residuals.max()))
    scale = max(float(old.values[0]), float(new.values[0]))
    return largest / scale if scale else 0.0


def _basis_loss(old: Decomposition, new: Tensor, k: int) -> BasisLoss:
    return BasisLoss(
        left=basis_loss(new @ old.right[:, :k]),
        right=basis_loss(new.T @ old.left[:, :k]),
        num_vectors=k,
    )


def _check(before: Tensor, after: Tensor, top: Sequence[int], energy: float) -> None:
    if before.ndim != 2 or min(before.shape) < 1:
        raise VituneError(
            f"before: got shape {tuple(before.shape)!r}, expected a matrix (out, in). "
            "Reshape a convolution to (out, in·k·k)."
        )
    if after.shape != before.shape:
        raise VituneError(
            f"after: got shape {tuple(after.shape)!r}, expected {tuple(before.shape)!r} as before."
        )
    for name, weight in (("before", before), ("after", after)):
        if not torch.isfinite(weight).all():
            bad = int((~torch.isfinite(weight)).sum())
            raise VituneError(
                f"{name}: got {bad!r} values that are NaN or infinite, expected none."
            )
    if not len(top) or not all(isinstance(k, Integral) and k >= 1 for k in top):
        raise VituneError(f"top: got {tuple(top)!r}, expected dimensions of at least 1.")
    if not (isinstance(energy, Real) and 0 < energy <= 1):
        raise VituneError(f"energy: got {energy!r}, expected a number in (0, 1].")
