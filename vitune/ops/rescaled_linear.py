"""y = x W'ᵀ + b' with W' = W ⊙ (1 + S_out S_in): RLRR's linear map and its memory-lean gradient.

The fast version keeps only x for the backward pass. There it rebuilds W' instead of storing a
second copy of the network, and reduces the weight gradient dyᵀx against W tile by tile, so no
weight-sized gradient ever exists. The reference is the formula as written, left to autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitune.ops.hardware import in_autocast_dtype
from vitune.ops.plain import gradients_of, needs_plain_ops
from vitune.ops.rescaling import (
    per_image_reduction,
    product_gradients,
    rescaled_product,
    sum_bias,
    tiled_weight,
)

REDUCED_FROM = 16
"""Tokens per image from which one product dyᵀx per image is cheaper than two with W: besides its
2·n·o·i operations it passes over o·i numbers a few times, which few tokens do not pay for."""


def rescaled_weight(
    weight: Tensor, scale_out: Tensor, scale_in: Tensor, *, residual: bool = True
) -> Tensor:
    """W' = W ⊙ (1 + S_out S_in), or W ⊙ (S_out S_in) without the residual; differentiable.

    Shapes: weight (o, i); scale_out (o, r); scale_in (p, r, i), where the o outputs are p equal
        parts with their own input scales (p = 3 for a fused qkv, else 1); returns (o, i).
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
    return F.linear(x, changed, sum_bias(bias, shift, weight.dtype))


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

    For a small W (`rescaling.KEPT_WEIGHT`) W' is kept too. W and b are frozen here and get no
    gradient; if `weight` requires one, the reference runs instead. Under autocast the product is
    computed in the autocast dtype, W' being rounded once from a float32 product. If the gradient is
    differentiated again (`create_graph`), the reference is used, also under torch.func and
    torch.export; under torch.compile it is one custom operator.

    The product dyᵀx for the scales' gradients is computed in bfloat16 if x is float32 on a CPU that
    multiplies bfloat16 in hardware and n·o·i is at least BF16_REDUCTION_FROM. It never affects y
    and dx, so no error spreads to other layers.

    Shapes: x (..., i); weight (o, i); bias, shift (o,) or None; scale_out (o, r);
        scale_in (p, r, i); returns (..., o).
    Args:
        exact: compute every product in x's own dtype, even if the machine could be faster.
        token_share: below 1, dyᵀx is estimated from this share of the tokens (`sample_tokens`): the
            scales' gradients are unbiased and noisier; y, dx and the shift's gradient are exact.
    Source: RLRR (CVPR 2024) eq. 5 and 6; the recomputation is vitune's.
    """
    x = in_autocast_dtype(x)
    if weight.requires_grad or needs_plain_ops():
        changed = rescaled_weight(weight, scale_out, scale_in, residual=residual).to(x.dtype)
        return F.linear(x, changed, sum_bias(bias, shift, x.dtype))
    if torch.compiler.is_compiling():
        whole: Tensor = _whole(
            x, weight, bias, scale_out, scale_in, shift, residual, exact, token_share
        )
        return whole
    if not torch.is_grad_enabled():
        changed = tiled_weight(weight, scale_out, scale_in, residual, x.dtype)
        return F.linear(x, changed, sum_bias(bias, shift, x.dtype))
    result: Tensor = _RescaledLinear.apply(
        x, weight, bias, scale_out, scale_in, shift, residual, exact, token_share
    )
    return result


def per_sample_scale_gradients(
    x: Tensor,
    grad: Tensor,
    weight: Tensor | None,
    scale_out: Tensor,
    scale_in: Tensor,
    *,
    exact: bool = False,
) -> tuple[Tensor, Tensor]:
    """(d scale_out, d scale_in) of every image alone.

    With many tokens per image, each image's dyᵀx is reduced against W tile by tile, as for the sum
    (and in bfloat16 where `rescaled_linear` would). With few tokens, or W = 1, two products per
    rank are cheaper: g_in = Σ x ⊙ ((dy ⊙ s_out) W), g_out = Σ dy ⊙ ((x ⊙ s_in) Wᵀ), sums over the
    tokens of an image.

    Shapes: x (b, ..., i); grad (b, ..., o); weight (o, i), or None for W = 1; scale_out (o, r);
        scale_in (p, r, i); returns (b, o, r) and (b, p, r, i).
    Args:
        exact: take every product in x's own dtype, whatever the machine could do faster.
    """
    x = x.reshape(len(x), -1, x.shape[-1])  # (b, n, i)
    grad = grad.reshape(len(grad), -1, grad.shape[-1])  # (b, n, o)
    if weight is not None and x.shape[1] >= REDUCED_FROM:
        return per_image_reduction(x, grad, weight, scale_out, scale_in, exact)
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
        ctx.residual, ctx.exact, ctx.token_share = residual, exact, token_share
        ctx.shift_dtype = None if shift is None else shift.dtype
        y, kept = rescaled_product(x, weight, bias, scale_out, scale_in, shift, residual)
        ctx.save_for_backward(x, weight, scale_out, scale_in, kept)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale_out, scale_in, kept = ctx.saved_tensors
        needs_x, _, _, needs_out, needs_in, needs_shift, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return _differentiable_gradients(ctx, grad)
        needed = (needs_x, needs_out, needs_in, needs_shift)
        how = (ctx.residual, ctx.exact, ctx.token_share)
        found = product_gradients(grad, x, weight, scale_out, scale_in, *how, needed, kept)
        of_x, of_out, of_in, of_shift = found
        if of_shift is not None:
            of_shift = of_shift.to(ctx.shift_dtype)
        return of_x, None, None, of_out, of_in, of_shift, None, None, None


def _differentiable_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The reference's gradients, with a graph of their own."""
    x, weight, scale_out, scale_in, _ = ctx.saved_tensors
    needs_x, _, _, needs_out, needs_in, needs_shift, *_ = ctx.needs_input_grad

    def product(x: Tensor, scale_out: Tensor, scale_in: Tensor) -> Tensor:
        changed = rescaled_weight(weight, scale_out, scale_in, residual=ctx.residual)
        return F.linear(x, changed.to(x.dtype))

    needed = (needs_x, needs_out, needs_in)
    of_x, of_out, of_in = gradients_of(product, (x, scale_out, scale_in), needed, grad)
    flat = grad.reshape(-1, grad.shape[-1])  # (n, o)
    of_shift = flat.sum(0).to(ctx.shift_dtype) if needs_shift else None
    return of_x, None, None, of_out, of_in, of_shift, None, None, None


_SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias, Tensor scale_out, Tensor scale_in, Tensor? shift, "
    "bool residual, bool exact, float token_share) -> Tensor"
)
_GRADIENT_SCHEMA = (
    "(Tensor grad, Tensor x, Tensor weight, Tensor scale_out, Tensor scale_in, bool residual, "
    "bool exact, float token_share, bool[] needed) -> (Tensor, Tensor, Tensor, Tensor)"
)


# The same as one operator for torch.compile, which cannot trace an autograd.Function that works in
# tiles. Outside a compiled graph that function has less overhead.
@torch.library.custom_op("vitune::rescaled_linear", mutates_args=(), schema=_SCHEMA)
def _whole(
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
    return rescaled_product(x, weight, bias, scale_out, scale_in, shift, residual)[0]


@_whole.register_fake
def _whole_shape(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op(
    "vitune::rescaled_linear_gradient", mutates_args=(), schema=_GRADIENT_SCHEMA
)
def _whole_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale_out: Tensor,
    scale_in: Tensor,
    residual: bool,
    exact: bool,
    token_share: float,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    """An operator returns only tensors: an empty one represents a gradient that is not needed."""
    found = product_gradients(
        grad, x, weight, scale_out, scale_in, residual, exact, token_share, needed
    )
    return tuple(x.new_empty(0) if value is None else value for value in found)


@_whole_gradient.register_fake
def _gradient_shapes(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale_out: Tensor,
    scale_in: Tensor,
    residual: bool,
    exact: bool,
    token_share: float,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    shift = x.new_empty(weight.shape[0])
    made = (torch.empty_like(x), torch.empty_like(scale_out), torch.empty_like(scale_in), shift)
    return tuple(
        value if is_needed else x.new_empty(0)
        for value, is_needed in zip(made, needed, strict=True)
    )


def _keep_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, scale_out, scale_in, shift, *ctx.how = inputs
    ctx.save_for_backward(x, weight, scale_out, scale_in)
    ctx.shift_dtype = None if shift is None else shift.dtype


def _whole_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_x, _, _, needs_out, needs_in, needs_shift, *_ = ctx.needs_input_grad
    needed = [needs_x, needs_out, needs_in, needs_shift]
    found = _whole_gradient(grad, *ctx.saved_tensors, *ctx.how, needed)
    of_x, of_out, of_in, of_shift = (
        value if is_needed else None for value, is_needed in zip(found, needed, strict=True)
    )
    if of_shift is not None:
        of_shift = of_shift.to(ctx.shift_dtype)
    return of_x, None, None, of_out, of_in, of_shift, None, None, None


_whole.register_autograd(_whole_backward, setup_context=_keep_for_gradient)
