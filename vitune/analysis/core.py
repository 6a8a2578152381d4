"""The change of a weight in the weight's own singular bases: the core C = Uᵀ ΔW V."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vitune.analysis.decomposition import Decomposition

LEADING = 8
"""Dimension of the core's leading block."""


@dataclass(frozen=True)
class Core:
    """How ΔW = U C Vᵀ + rest is spread over the singular terms σ_j u_j v_jᵀ of W.

    Every share is of ‖ΔW‖_F², so that `diagonal` + `off_diagonal` + `outside` = 1. To first order
    a diagonal entry C_jj changes the singular value σ_j and no vector, and an off-diagonal entry
    C_ij rotates u_j towards u_i and v_i towards v_j, more strongly the closer σ_i and σ_j are, and
    changes no value.

    Args:
        diagonal: Σ_j C_jj²: changes the spectrum. A random direction gives 1 / max(out, in).
        off_diagonal: Σ_{i≠j} C_ij²: rotates the bases within the span of W.
        outside: the part outside the spans of U and V; possible if a matrix is not square or not of
            full rank.
        leading: Σ_{i,j ≤ 8} C_ij²: how much of the change is among the leading terms. A random
            direction gives 64 / (out · in).
        size: ‖C‖_F / ‖W‖_F.
    """

    diagonal: float
    off_diagonal: float
    outside: float
    leading: float
    size: float


def core_of(svd: Decomposition, delta: Tensor) -> Core | None:
    """The core of a change; None if nothing changed or the decomposition is not complete.

    Only terms with σ_j above rounding count as W's own.

    Shapes: delta (o, i).

    Source: the argument of RLRR (CVPR 2024) section 3.2, which describes what each method does to
        the terms of W, here as a number. The paper writes x W, so its left is our right.
    """
    total = float(delta.square().sum())
    if not svd.exact or total == 0:
        return None
    known = svd.rank
    core = svd.left[:, :known].T @ delta @ svd.right[:, :known]  # (r, r)
    squares = core.square()
    within, diagonal = float(squares.sum()), float(squares.diagonal().sum())
    return Core(
        diagonal=diagonal / total,
        off_diagonal=max(within - diagonal, 0.0) / total,
        outside=max(total - within, 0.0) / total,
        leading=float(squares[:LEADING, :LEADING].sum()) / total,
        size=(within / svd.total_energy) ** 0.5 if svd.total_energy else 0.0,
    )
