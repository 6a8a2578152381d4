"""y = x W'ᵀ + b' with W' = W ⊙ (1 + S_out S_in): RLRR's linear map and its memory-lean gradient.

The fast version keeps only x for the backward pass. It builds W' again there instead of storing a
second copy of the network, and reduces the weight gradient dyᵀx against W tile by tile, so that no
weight-sized gradient ever exists. The reference is the formula as written, left to autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TILE_ELEMENTS = 1 << 20


def rescaled_weight(
    weight: Tensor, scale_out: Tensor, scale_in: Tensor, *, residual: bool = True
) -> Tensor:
    """W' = W ⊙ (1 + S_out S_in), or W ⊙ (S_out S_in) without the residual; differentiable.

    Shapes: weight (o, i); scale_out (o, r); scale_in (p, r, i), where the o outputs are p equal
        parts with input scales of their own (p = 3 for a fused qkv, else 1); returns (o, i).
    Source: RLRR (CVPR 2024) eq. 5; the paper writes x W, so its s_left is scale_in here.
    """
    factor = scale_out.unflatten(0, (scale_in.shape[0], -1)) @ scale_in  # (p, o/p, i)
    factor = factor.flatten(0, 1)  # (o, i)
    return (weight * (factor + 1 if residual else factor)).to(weight.dtype)


def rescaled_linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale_out: Tensor,
    scale_in: Tensor,
    shift: Tensor | None,
    *,
    residual: bool = True,
) -> Tensor:
    """y = x W'ᵀ + b + f, as written; the arguments are those of `rescaled_linear`."""
    changed = rescaled_weight(weight, scale_out, scale_in, residual=residual)
    return F.linear(x, changed, _sum_bias(bias, shift, weight.dtype))


def rescaled_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale_out: Tensor,
    scale_in: Tensor,
    shift: Tensor | None,
    *,
    residual: bool = True,
) -> Tensor:
    """y = x W'ᵀ + b + f with W' = W ⊙ (1 + S_out S_in), saving only x for the backward pass.

    W and b are frozen here and get no gradient; where `weight` requires one, the reference runs
    instead. Under autocast the product is taken in the autocast dtype, W' being rounded once from
    a float32 product. It can be differentiated once; a second time raises PyTorch's own error.

    Shapes: x (..., i); weight (o, i); bias, shift (o,) or None; scale_out (o, r);
        scale_in (p, r, i); returns (..., o).
    Source: RLRR (CVPR 2024) eq. 5 and 6; the recomputation is vitune's.
    """
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type):
        x = x.to(torch.get_autocast_dtype(device_type))
    if weight.requires_grad or not torch.is_grad_enabled():
        changed = _tiled_weight(weight, scale_out, scale_in, residual, x.dtype)
        if weight.requires_grad:
            changed = rescaled_weight(weight, scale_out, scale_in, residual=residual).to(x.dtype)
        return F.linear(x, changed, _sum_bias(bias, shift, x.dtype))
    result: Tensor = _RescaledLinear.apply(
        x, weight, bias, scale_out, scale_in, shift, residual
    )
    return result


class _RescaledLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale_out: Tensor,
        scale_in: Tensor,
        shift: Tensor | None,
        residual: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scale_out, scale_in)
        ctx.residual = residual
        ctx.shift_dtype = None if shift is None else shift.dtype
        changed = _tiled_weight(weight, scale_out, scale_in, residual, x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, changed, _sum_bias(bias, shift, x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale_out, scale_in = ctx.saved_tensors
        needs_x, _, _, needs_out, needs_in, needs_shift, _ = ctx.needs_input_grad
        flat_grad = grad.reshape(-1, grad.shape[-1]).to(x.dtype)  # (n, o)
        grad_x = grad_out = grad_in = grad_shift = None
        with torch.autocast(x.device.type, enabled=False):
            if needs_x:
                changed = _tiled_weight(weight, scale_out, scale_in, ctx.residual, x.dtype)
                grad_x = (flat_grad @ changed).view_as(x)
                del changed
            if needs_out or needs_in:
                grad_out, grad_in = _scale_gradients(
                    flat_grad, x.reshape(-1, x.shape[-1]), weight, scale_out, scale_in
                )
            if needs_shift:
                grad_shift = flat_grad.sum(0, dtype=_sum_dtype(flat_grad)).to(ctx.shift_dtype)
        return (
            grad_x,
            None,
            None,
            grad_out if needs_out else None,
            grad_in if needs_in else None,
            grad_shift,
            None,
        )


def _scale_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, scale_out: Tensor, scale_in: Tensor
) -> tuple[Tensor, Tensor]:
    """(d scale_out, d scale_in) from dW' = gradᵀ x, one tile of outputs at a time."""
    grad_out, grad_in = torch.empty_like(scale_out), torch.zeros_like(scale_in)
    for part, tile in _tiles(weight, scale_in.shape[0]):
        change = (grad[:, tile].T @ x).to(scale_out.dtype)  # (t, i)
        change *= weight[tile]
        grad_out[tile] = change @ scale_in[part].T  # (t, r)
        grad_in[part].addmm_(scale_out[tile].T, change)  # (r, i)
    return grad_out, grad_in


@torch.no_grad()
def _tiled_weight(
    weight: Tensor, scale_out: Tensor, scale_in: Tensor, residual: bool, dtype: torch.dtype
) -> Tensor:
    """W' in `dtype`, computed tile by tile in the scales' dtype and rounded once."""
    changed = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for part, tile in _tiles(weight, scale_in.shape[0]):
        factor = scale_out[tile] @ scale_in[part]  # (t, i)
        if residual:
            factor += 1
        torch.mul(weight[tile], factor, out=factor)
        changed[tile] = factor
    return changed


def _tiles(weight: Tensor, num_parts: int) -> list[tuple[int, slice]]:
    """(part, outputs) pairs whose tiles of W stay in a core's cache."""
    part_size = weight.shape[0] // num_parts
    tile_size = max(1, min(part_size, TILE_ELEMENTS // max(1, weight.shape[1])))
    return [
        (part, slice(start, min(start + tile_size, (part + 1) * part_size)))
        for part in range(num_parts)
        for start in range(part * part_size, (part + 1) * part_size, tile_size)
    ]


def _sum_bias(bias: Tensor | None, shift: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    present = [vector for vector in (bias, shift) if vector is not None]
    return sum(present[1:], present[0]).to(dtype) if present else None


def _sum_dtype(grad: Tensor) -> torch.dtype:
    return torch.promote_types(grad.dtype, torch.float32)
