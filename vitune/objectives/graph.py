"""Graph regularisation: pulls features of one class together on the unit sphere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def graph_penalty(features: Tensor, labels: Tensor) -> Tensor:
    """G = Σ_ij A_ij ‖z̄_i − z̄_j‖² / b, A_ij = 1[y_i = y_j] / (images of that class in the batch).

    This is the Laplacian form 2 tr(Z̄ᵀ (D − A) Z̄) / b. The rows of A sum to 1 and z̄ has length 1,
    so G = 2 (1 − Σ_c ‖Σ_i T_ic z̄_i‖² / n_c / b), which needs no b x b matrix. A class with one
    image in the batch adds nothing: batches of at least 64, or few classes, are needed.

    Args:
        labels: class indices, or target shares T after mixup.

    Shapes: features (b, d); labels (b,) or (b, c) -> a scalar in [0, 4].
    Source: MET (arXiv 2409.13999) names the term; its graph is a reconstruction.
    """
    unit = F.normalize(features.float(), dim=-1)  # (b, d)
    shares = F.one_hot(labels) if labels.dim() == 1 else labels
    shares = shares.to(unit.dtype)  # (b, c)
    counts = shares.sum(0)  # (c,)
    sums = shares.T @ unit  # (c, d)
    kept = (sums.square().sum(-1) / counts.clamp(min=torch.finfo(unit.dtype).tiny)).sum()
    # With one-hot labels Σ_ij A_ij = b; with shares it is less where a row is split.
    total = shares.sum(-1).sum()
    return 2 * (total - kept) / len(unit)
