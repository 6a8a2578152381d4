"""y = x W'ᵀ + b' with W' = W ⊙ (1 + S_out S_in): RLRR's linear map and its memory-lean gradient.

The fast version keeps only x for the backward pass. It builds W' again there instead of storing a
second copy of the network, and reduces the weight gradient dyᵀx against W tile by tile, so that no
weight-sized gradient ever exists. The reference is the formula as written, left to autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitune.ops.hardware import cpu_multiplies_bf16, in_autocast_dtype, without_autocast
from vitune.ops.plain import gradients_of, needs_plain_ops
from vitune.ops.token_sampling import sample_tokens

BUILD_TILE = 1 << 19
"""Elements of W that are rescaled at a time: their float32 product stays in a core's cache.

2 MiB in float32, about one core's second-level cache.
"""

REDUCTION_TILE = 1 << 21
"""Elements of dyᵀx that exist at a time; smaller tiles make the product itself slower.

8 MiB in float32: four times BUILD_TILE, since every tile reads the whole of x once more.
"""

BF16_REDUCTION_FROM = 1 << 28
"""Multiplications n·o·i from which a float32 reduction product is taken in bfloat16."""


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
    exact: bool = False,
    token_share: float = 1.0,
) -> Tensor:
    """y = x W'ᵀ + b + f with W' = W ⊙ (1 + S_out S_in), saving only x for the backward pass.

    W and b are frozen here and get no gradient; where `weight` requires one, the reference runs
    instead. Under autocast the product is taken in the autocast dtype, W' being rounded once from
    a float32 product. Where a gradient is to be differentiated in turn (`create_graph`), the
    reference's is given; under torch.func and torch.export the reference runs.

    The product dyᵀx behind the scales' gradients is taken in bfloat16 where x is float32 on a CPU
    that multiplies bfloat16 in hardware and n·o·i is at least BF16_REDUCTION_FROM. y and dx are
    never touched by it, so that no error travels to other layers.

    Shapes: x (..., i); weight (o, i); bias, shift (o,) or None; scale_out (o, r);
        scale_in (p, r, i); returns (..., o).
    Args:
        exact: take every product in x's own dtype, whatever the machine could do faster.
        token_share: below 1, dyᵀx is estimated from so many of the tokens (`sample_tokens`): the
            scales' gradients are unbiased and noisier; y, dx and the shift's gradient are exact.
    Source: RLRR (CVPR 2024) eq. 5 and 6; the recomputation is vitune's.
    """
    x = in_autocast_dtype(x)
    if weight.requires_grad or needs_plain_ops():
        changed = rescaled_weight(weight, scale_out, scale_in, residual=residual).to(x.dtype)
        return F.linear(x, changed, _sum_bias(bias, shift, x.dtype))
    if not torch.is_grad_enabled():
        changed = _tiled_weight(weight, scale_out, scale_in, residual, x.dtype)
        return F.linear(x, changed, _sum_bias(bias, shift, x.dtype))
    result: Tensor = _RescaledLinear.apply(
        x, weight, bias, scale_out, scale_in, shift, residual, exact, token_share
    )
    return result


def per_sample_scale_gradients(
    x: Tensor, grad: Tensor, weight: Tensor | None, scale_out: Tensor, scale_in: Tensor
) -> tuple[Tensor, Tensor]:
    """(d scale_out, d scale_in) of every image alone, in two products with W per rank.

    g_in = Σ x ⊙ ((dy ⊙ s_out) W) and g_out = Σ dy ⊙ ((x ⊙ s_in) Wᵀ), sums over an image's tokens.

    Shapes: x (b, ..., i); grad (b, ..., o); weight (o, i), or None for W = 1; scale_out (o, r);
        scale_in (p, r, i); returns (b, o, r) and (b, p, r, i).
    """
    x = x.reshape(len(x), -1, x.shape[-1])  # (b, n, i)
    grad = grad.reshape(len(grad), -1, grad.shape[-1])  # (b, n, o)
    num_parts, rank, _ = scale_in.shape
    of_out, of_in = grad.new_empty(len(x), *scale_out.shape), x.new_empty(len(x), *scale_in.shape)
    size = len(scale_out) // num_parts
    for part in range(num_parts):
        outs = slice(part * size, (part + 1) * size)
        for one in range(rank):
            if weight is None:
                back = grad[..., outs] @ scale_out[outs, one, None]  # (b, n, 1)
                ahead = x @ scale_in[part, one, :, None]  # (b, n, 1)
            else:
                back = (grad[..., outs] * scale_out[outs, one]) @ weight[outs]  # (b, n, i)
                ahead = (x * scale_in[part, one]) @ weight[outs].T  # (b, n, o/p)
            of_in[:, part, one] = (x * back).sum(1)
            of_out[:, outs, one] = (grad[..., outs] * ahead).sum(1)
    return of_out, of_in


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
        exact: bool,
        token_share: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scale_out, scale_in)
        ctx.residual, ctx.exact, ctx.token_share = residual, exact, token_share
        ctx.shift_dtype = None if shift is None else shift.dtype
        with without_autocast(x.device.type):
            changed = _tiled_weight(weight, scale_out, scale_in, residual, x.dtype)
            return F.linear(x, changed, _sum_bias(bias, shift, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale_out, scale_in = ctx.saved_tensors
        needs_x, _, _, needs_out, needs_in, needs_shift, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return _differentiable_gradients(ctx, grad)
        grad = grad.reshape(-1, grad.shape[-1]).to(x.dtype)  # (n, o)
        grad_x = grad_out = grad_in = grad_shift = None
        with without_autocast(x.device.type):
            if needs_x:
                changed = _tiled_weight(weight, scale_out, scale_in, ctx.residual, x.dtype)
                grad_x = (grad @ changed).view_as(x)
                del changed
            if needs_shift:
                grad_shift = (grad.T @ grad.new_ones(len(grad))).to(ctx.shift_dtype)  # (o,)
            if needs_out or needs_in:
                x = x.reshape(-1, x.shape[-1])  # (n, i)
                # Only the scales' gradient is estimated, and last: dx and the shift's are exact, so
                # that no layer below inherits the noise.
                if ctx.token_share < 1:
                    grad, x = sample_tokens(grad, x, ctx.token_share)
                if not ctx.exact and _reduces_in_bf16(x, weight):
                    x, grad = x.bfloat16(), grad.bfloat16()
                grad_out, grad_in = _scale_gradients(grad, x, weight, scale_out, scale_in)
        return (
            grad_x,
            None,
            None,
            grad_out if needs_out else None,
            grad_in if needs_in else None,
            grad_shift,
            None,
            None,
            None,
        )


def _differentiable_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The reference's gradients, with a graph of their own."""
    x, weight, scale_out, scale_in = ctx.saved_tensors
    needs_x, _, _, needs_out, needs_in, needs_shift, *_ = ctx.needs_input_grad

    def product(x: Tensor, scale_out: Tensor, scale_in: Tensor) -> Tensor:
        changed = rescaled_weight(weight, scale_out, scale_in, residual=ctx.residual)
        return F.linear(x, changed.to(x.dtype))

    needed = (needs_x, needs_out, needs_in)
    of_x, of_out, of_in = gradients_of(product, (x, scale_out, scale_in), needed, grad)
    of_shift = grad.flatten(0, -2).sum(0).to(ctx.shift_dtype) if needs_shift else None
    return of_x, None, None, of_out, of_in, of_shift, None, None, None


def _scale_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, scale_out: Tensor, scale_in: Tensor
) -> tuple[Tensor, Tensor]:
    """(d scale_out, d scale_in) from dW' = gradᵀ x, one tile of outputs at a time."""
    grad_out, grad_in = torch.empty_like(scale_out), torch.zeros_like(scale_in)
    for outs, parts in _tiles(weight, scale_in.shape[0], REDUCTION_TILE):
        change = (grad[:, outs].T @ x).to(scale_out.dtype).mul_(weight[outs])  # (k·t, i)
        change = _by_part(change, parts)  # (k, t, i)
        grad_out[outs] = (change @ scale_in[parts].mT).flatten(0, 1)  # (k·t, r)
        grad_in[parts] += _by_part(scale_out[outs], parts).mT @ change  # (k, r, i)
    return grad_out, grad_in


def _reduces_in_bf16(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and len(x) * weight.numel() >= BF16_REDUCTION_FROM
        and cpu_multiplies_bf16()
    )


@torch.no_grad()
def _tiled_weight(
    weight: Tensor, scale_out: Tensor, scale_in: Tensor, residual: bool, dtype: torch.dtype
) -> Tensor:
    """W' in `dtype`, computed tile by tile in the wider dtype of W and scales, rounded once."""
    changed = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    tiles = _tiles(weight, scale_in.shape[0], BUILD_TILE)
    largest = max(outs.stop - outs.start for outs, _ in tiles)
    wide = torch.promote_types(weight.dtype, scale_out.dtype)
    buffer = torch.empty(largest, weight.shape[1], dtype=wide, device=weight.device)
    for outs, parts in tiles:
        old, by_in = _by_part(weight[outs], parts), scale_in[parts]  # (k, t, i), (k, r, i)
        by_out = _by_part(scale_out[outs], parts)  # (k, t, r)
        tile = buffer[: outs.stop - outs.start]
        new = _by_part(tile, parts)
        if by_in.shape[1] > 1:
            new.copy_(by_out @ by_in)
            (new.add_(1) if residual else new).mul_(old)
        elif residual:
            torch.mul(old, by_in, out=new)
            torch.addcmul(old, new, by_out, out=new)
        else:
            torch.mul(old, by_in, out=new).mul_(by_out)
        changed[outs] = tile
    return changed


def _tiles(weight: Tensor, num_parts: int, most: int) -> list[tuple[slice, slice]]:
    """(outputs, parts) pairs: all at once where W has at most `most` elements, else even tiles."""
    num_out, num_in = weight.shape
    if num_out * num_in <= most:
        return [(slice(0, num_out), slice(0, num_parts))]
    part_size = num_out // num_parts
    # Even tiles (-(-a // b) rounds up) rather than full ones and a rest: a thin product is slow.
    # A tile never crosses a part of a fused weight, whose parts have scales of their own.
    num_tiles = min(part_size, -(-part_size * num_in // most))
    size = -(-part_size // num_tiles)
    return [
        (slice(start, min(start + size, (part + 1) * part_size)), slice(part, part + 1))
        for part in range(num_parts)
        for start in range(part * part_size, (part + 1) * part_size, size)
    ]


def _by_part(tensor: Tensor, parts: slice) -> Tensor:
    return tensor.unflatten(0, (parts.stop - parts.start, -1))


def _sum_bias(bias: Tensor | None, shift: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    present = [vector for vector in (bias, shift) if vector is not None]
    return sum(present[1:], present[0]).to(dtype) if present else None
