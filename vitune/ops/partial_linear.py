"""y = x Wᵀ + b with some rows of W and b trained, the others frozen.

The fast version keeps x once and computes gradients only for the trained rows; the reference builds
the whole weight and leaves the rest to autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitune.ops.plain import gradients_of, needs_plain_ops


def partial_weight(weight: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
    """W with its rows `indices` replaced; differentiable in `rows`.

    Shapes: weight (o, ...); rows (r, ...); indices (r,), all different; returns (o, ...).
    """
    return weight.index_copy(0, indices, rows.to(weight.dtype))


def partial_linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    row_bias: Tensor | None,
    indices: Tensor,
) -> Tensor:
    """y = x W'ᵀ + b', as written; the arguments are those of `partial_linear`."""
    if bias is not None and row_bias is not None:
        bias = partial_weight(bias, row_bias, indices)
    return F.linear(x, partial_weight(weight, rows, indices), bias)


def partial_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    row_bias: Tensor | None,
    indices: Tensor,
) -> Tensor:
    """y = x W'ᵀ + b', W' and b' being W and b with rows replaced, saving only x for the backward.

    W and b are frozen and get no gradient, so no buffer of W's size exists besides W. If the
    gradient is differentiated again (`create_graph`), the reference is used; also under torch.func
    and torch.export.

    Shapes: x (..., i); weight (o, i); bias (o,) or None; rows (r, i); row_bias (r,) or None where
        bias is None; indices (r,), all different; returns (..., o).
    Source: APLA's forward pass (its code's two products); the single saved x is vitune's.
    """
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type):
        x = x.to(torch.get_autocast_dtype(device_type))
    if weight.requires_grad or needs_plain_ops():
        return partial_linear_reference(x, weight.to(x.dtype), bias, rows, row_bias, indices)
    result: Tensor = _PartialLinear.apply(x, weight, bias, rows, row_bias, indices)
    return result


class _PartialLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        row_bias: Tensor | None,
        indices: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, rows, indices)
        ctx.has_bias = row_bias is not None
        with torch.autocast(x.device.type, enabled=False):
            y = F.linear(x, weight.to(x.dtype), _cast(bias, x.dtype))  # (..., o)
            trained = F.linear(x, rows.to(x.dtype), _cast(row_bias, x.dtype))  # (..., r)
        return y.index_copy_(-1, indices, trained)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows, indices = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_gradients(ctx, grad)
        grad = grad.to(x.dtype)
        of_rows = grad.index_select(-1, indices)  # (..., r)
        grad_x = grad_rows = grad_bias = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                change = rows.to(x.dtype) - weight.index_select(0, indices).to(x.dtype)
                grad_x = grad @ weight.to(x.dtype) + of_rows @ change  # (..., i)
            flat = of_rows.reshape(-1, of_rows.shape[-1])  # (n, r)
            if ctx.needs_input_grad[3]:
                grad_rows = (flat.T @ x.reshape(-1, x.shape[-1])).to(rows.dtype)  # (r, i)
            if ctx.has_bias and ctx.needs_input_grad[4]:
                grad_bias = flat.sum(0, dtype=rows.dtype)
        return grad_x, None, None, grad_rows, grad_bias, None


def _differentiable_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The reference's gradients, with a graph of their own."""
    x, weight, rows, indices = ctx.saved_tensors

    def product(x: Tensor, rows: Tensor) -> Tensor:
        return F.linear(x, partial_weight(weight, rows, indices).to(x.dtype))

    needed = (ctx.needs_input_grad[0], ctx.needs_input_grad[3])
    of_x, of_rows = gradients_of(product, (x, rows), needed, grad)
    of_bias = None
    if ctx.has_bias and ctx.needs_input_grad[4]:
        of_rows_alone = grad.index_select(-1, indices)  # (..., r)
        of_bias = of_rows_alone.reshape(-1, len(indices)).sum(0).to(rows.dtype)
    return of_x, None, None, of_rows, of_bias, None


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)
