"""When the fast ops give way to their references, and differentiable gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
"""torch 2.6 cannot distinguish an export from a compilation."""


def needs_plain_ops() -> bool:
    """Whether torch.func or torch.export inspects the operations.

    Their transforms have no rule for a custom autograd function, and an exported program cannot
    hold one.
    """
    return torch._C._are_functorch_transforms_active() or _is_exporting()


def gradients_of(
    function: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    needed: Sequence[bool],
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """The gradients of `function(*tensors)`, differentiable again; None if not `needed`.

    For a backward pass under `create_graph`. A fast one would be treated as a constant there, and
    second-order gradients would be silently wrong.
    """
    with torch.enable_grad():
        result = function(*tensors)
    wanted = [tensor for tensor, is_needed in zip(tensors, needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(result, wanted, grad, create_graph=True) if wanted else ())
    return tuple(next(found) if is_needed else None for is_needed in needed)
