"""The E-adapter: a bottleneck whose two projections are shared by all exits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def exit_adapter(x: Tensor, down: Tensor, up: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x + (GELU(x U) ⊙ c) V + β.

    Shapes: x (..., d); down U (d, r) and up V (r, d), shared by all exits; scale c (r,) and shift
        β (d,), of one exit -> (..., d).
    Source: MET (arXiv 2409.13999); what is exit-specific inside the adapter is a reconstruction.
    """
    return x + (F.gelu(x @ down) * scale) @ up + shift
