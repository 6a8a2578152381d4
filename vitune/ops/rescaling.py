"""The arithmetic of RLRR's linear map: W' and the gradient of its scales, built tile by tile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vitune.ops.hardware import cpu_multiplies_bf16, without_autocast
from vitune.ops.token_sampling import sample_tokens

BUILD_TILE = 1 << 19
"""Elements of W that are rescaled at a time: their float32 product stays in a core's cache.

2 MiB in float32, about one core's second-level cache.
"""

KEPT_WEIGHT = 1 << 17
"""Elements of W up to which W' is kept for the backward pass: rebuilding it costs more time than
its memory is worth in such a small network (a width of up to 181)."""

REDUCTION_TILE = 1 << 21
"""Elements of dyᵀx that exist at a time; smaller tiles make the product itself slower.

8 MiB in float32: four times BUILD_TILE, because every tile reads all of x again.
"""

BF16_REDUCTION_FROM = 1 << 28
"""Multiplications n·o·i from which on a float32 reduction product is computed in bfloat16."""


def rescaled_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale_out: Tensor,
    scale_in: Tensor,
    shift: Tensor | None,
    residual: bool,
) -> tuple[Tensor, Tensor | None]:
    """y, and W' if it is small enough to be kept for the gradient."""
    with without_autocast(x.device.type):
        changed = tiled_weight(weight, scale_out, scale_in, residual, x.dtype)
        result = F.linear(x, changed, sum_bias(bias, shift, x.dtype))
    return result, changed if changed.numel() <= KEPT_WEIGHT else None


def product_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale_out: Tensor,
    scale_in: Tensor,
    residual: bool,
    exact: bool,
    token_share: float,
    needed: Sequence[bool],
    changed: Tensor | None = None,
) -> list[Tensor | None]:
    """The gradients of x, scale_out, scale_in and shift, those that are `needed`.

    Args:
        changed: W' if it was kept.
    """
    needs_x, needs_out, needs_in, needs_shift = needed
    grad = grad.reshape(-1, grad.shape[-1]).to(x.dtype)  # (n, o)
    grad_x = grad_out = grad_in = grad_shift = None
    with without_autocast(x.device.type):
        if needs_x:
            if changed is None:
                changed = tiled_weight(weight, scale_out, scale_in, residual, x.dtype)
            grad_x = (grad @ changed).view_as(x)
            del changed
        if needs_shift:
            grad_shift = grad.T @ grad.new_ones(len(grad))  # (o,)
        if needs_out or needs_in:
            x = x.reshape(-1, x.shape[-1])  # (n, i)
            # Only the scales' gradient is estimated, and last: dx and the shift's are exact, so no
            # layer below inherits the noise.
            if token_share < 1:
                grad, x = sample_tokens(grad, x, token_share)
            if not exact and _reduces_in_bf16(x, weight):
                x, grad = x.bfloat16(), grad.bfloat16()
            grad_out, grad_in = _scale_gradients(grad, x, weight, scale_out, scale_in)
    return [grad_x, grad_out if needs_out else None, grad_in if needs_in else None, grad_shift]


def per_image_reduction(
    x: Tensor, grad: Tensor, weight: Tensor, scale_out: Tensor, scale_in: Tensor, exact: bool
) -> tuple[Tensor, Tensor]:
    """(d scale_out, d scale_in) of every image.

    Shapes: x (b, n, i); grad (b, n, o); weight (o, i); scale_out (o, r); scale_in (p, r, i);
        returns (b, o, r) and (b, p, r, i).
    """
    with without_autocast(x.device.type):
        grad = grad.to(x.dtype)
        if not exact and _reduces_in_bf16(x.flatten(0, 1), weight):
            x, grad = x.bfloat16(), grad.bfloat16()
        num_images = REDUCTION_TILE // weight.numel()
        if num_images > 1:  # so small a W that several images fit into one tile
            chunks = zip(grad.split(num_images), x.split(num_images), strict=True)
            pairs = [_tile_gradients(*each, weight, scale_out, scale_in) for each in chunks]
            join = torch.cat
        else:
            each_image = zip(grad, x, strict=True)
            pairs = [_scale_gradients(*each, weight, scale_out, scale_in) for each in each_image]
            join = torch.stack
    of_out, of_in = (join(values) for values in zip(*pairs, strict=True))
    return of_out, of_in


def _scale_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, scale_out: Tensor, scale_in: Tensor
) -> tuple[Tensor, Tensor]:
    """(d scale_out, d scale_in) from dW' = gradᵀ x, one tile of outputs at a time."""
    tiles = _tiles(weight, scale_in.shape[0], REDUCTION_TILE)
    if len(tiles) == 1:
        return _tile_gradients(grad, x, weight, scale_out, scale_in)
    grad_out, grad_in = torch.empty_like(scale_out), torch.zeros_like(scale_in)
    for outs, parts in tiles:
        given = (grad[:, outs], x, weight[outs], scale_out[outs], scale_in[parts])
        grad_out[outs], of_in = _tile_gradients(*given)
        grad_in[parts] += of_in
    return grad_out, grad_in


def _tile_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, scale_out: Tensor, scale_in: Tensor
) -> tuple[Tensor, Tensor]:
    num_parts = len(scale_in)
    change = (grad.mT @ x).to(scale_out.dtype).mul_(weight)  # (..., k·t, i)
    change = change.unflatten(-2, (num_parts, -1))  # (..., k, t, i)
    grad_out = (change @ scale_in.mT).flatten(-3, -2)  # (..., k·t, r)
    return grad_out, _by_part(scale_out, num_parts).mT @ change  # (..., k, r, i)


def _reduces_in_bf16(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and len(x) * weight.numel() >= BF16_REDUCTION_FROM
        and cpu_multiplies_bf16()
    )


@torch.no_grad()
def tiled_weight(
    weight: Tensor, scale_out: Tensor, scale_in: Tensor, residual: bool, dtype: torch.dtype
) -> Tensor:
    """W' in `dtype`, computed tile by tile in the wider dtype of W and scales, rounded once."""
    tiles = _tiles(weight, scale_in.shape[0], BUILD_TILE)
    if len(tiles) == 1:
        return _tile(weight, scale_out, scale_in, residual).to(dtype)
    changed = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    largest = max(outs.stop - outs.start for outs, _ in tiles)
    wide = torch.promote_types(weight.dtype, scale_out.dtype)
    buffer = torch.empty(largest, weight.shape[1], dtype=wide, device=weight.device)
    for outs, parts in tiles:
        tile = buffer[: outs.stop - outs.start]
        changed[outs] = _tile(weight[outs], scale_out[outs], scale_in[parts], residual, tile)
    return changed


def _tile(
    weight: Tensor, scale_out: Tensor, scale_in: Tensor, residual: bool, into: Tensor | None = None
) -> Tensor:
    """Some outputs of W' in the wider dtype, written to `into` if given."""
    num_parts = len(scale_in)
    old, by_out = (_by_part(t, num_parts) for t in (weight, scale_out))  # (k, t, i), (k, t, r)
    new = None if into is None else _by_part(into, num_parts)
    if scale_in.shape[1] > 1:
        factor = torch.matmul(by_out, scale_in)
        new = torch.mul(factor.add_(1) if residual else factor, old, out=new)
    elif residual:
        new = torch.mul(old, scale_in, out=new)
        new = torch.addcmul(old, new, by_out, out=new)
    else:
        new = torch.mul(old, scale_in, out=new).mul_(by_out)
    return new.flatten(0, 1)


def _tiles(weight: Tensor, num_parts: int, most: int) -> list[tuple[slice, slice]]:
    """(outputs, parts) pairs: all at once if W has at most `most` elements, else even tiles."""
    num_out, num_in = weight.shape
    if num_out * num_in <= most:
        return [(slice(0, num_out), slice(0, num_parts))]
    part_size = num_out // num_parts
    # Even tiles (-(-a // b) rounds up) rather than full ones and a remainder: a thin product is
    # slow. A tile never crosses parts of a fused weight, which have their own scales.
    num_tiles = min(part_size, -(-part_size * num_in // most))
    size = -(-part_size // num_tiles)
    return [
        (slice(start, min(start + size, (part + 1) * part_size)), slice(part, part + 1))
        for part in range(num_parts)
        for start in range(part * part_size, (part + 1) * part_size, size)
    ]


def _by_part(tensor: Tensor, num_parts: int) -> Tensor:
    return tensor.view(num_parts, -1, tensor.shape[-1])


def sum_bias(bias: Tensor | None, shift: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    present = [vector for vector in (bias, shift) if vector is not None]
    return sum(present[1:], present[0]).to(dtype) if present else None
