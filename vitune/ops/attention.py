"""softmax(q kᵀ / √d) v in bfloat16 on a CPU, image by image, saving only q, k and v."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from vitune.ops.hardware import cpu_multiplies_bf16, without_autocast
from vitune.ops.plain import gradients_of, needs_plain_ops

MAX_TOKENS = 1024
"""Above this the n·n scores of an image exceed the cache and PyTorch's own kernel is faster."""

SCORES_PER_THREAD = 1 << 19
"""Scores of one thread at a time: 2 MiB in float32, about one core's second-level cache."""


def attention_reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + bias) v as written; the arguments are those of `attention`."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT  # (b, h, n, m)
    return (scores if bias is None else scores + bias).softmax(-1) @ v


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + bias) v by plain products, the scores recomputed for the gradient.

    A few images at a time, so that their scores stay in the cache. If the gradient is
    differentiated again (`create_graph`), the reference is used; also under torch.func and
    torch.export.

    Shapes: q (b, h, n, d); k (b, h, m, d); v (b, h, m, e); bias (b, 1, 1, m), which gets no
        gradient; returns (b, h, n, e).
    """
    if needs_plain_ops():
        return attention_reference(q, k, v, bias)
    result: Tensor = _Attention.apply(q, k, v, bias)
    return result


def prefers_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `attention` is faster: bfloat16 on a CPU with instructions for it.

    PyTorch's own CPU kernel takes 1.9 times as long there, forward and backward together; in
    float32, for long sequences and on other devices it is faster.
    """
    return (
        all(tensor.dtype == torch.bfloat16 and tensor.dim() == 4 for tensor in (q, k, v))
        and q.device.type == "cpu"
        and q.shape[:2] == k.shape[:2]
        and max(q.shape[-2], k.shape[-2]) <= MAX_TOKENS
        and cpu_multiplies_bf16()
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        b, h, n, _ = q.shape
        result = q.new_empty(b, n, h, v.shape[-1]).transpose(1, 2)  # (b, h, n, e)
        with without_autocast(q.device.type):
            for some in _images(q, k):
                some_bias = None if bias is None else bias[some]
                result[some] = attention_reference(q[some], k[some], v[some], some_bias)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            biased = partial(attention_reference, bias=bias)
            return *gradients_of(biased, (q, k, v), ctx.needs_input_grad[:3], grad), None
        scale = q.shape[-1] ** -0.5
        grad_q, grad_k, grad_v = (torch.empty_like(tensor) for tensor in (q, k, v))
        with without_autocast(q.device.type):
            for some in _images(q, k):
                scaled = q[some] * scale
                scores = scaled @ k[some].mT  # (b, h, n, m)
                shares = (scores if bias is None else scores + bias[some]).softmax(-1)
                grad_v[some] = shares.mT @ grad[some]
                grad_shares = grad[some] @ v[some].mT
                grad_scores = torch._softmax_backward_data(grad_shares, shares, -1, q.dtype)
                grad_q[some] = (grad_scores @ k[some]).mul_(scale)
                grad_k[some] = grad_scores.mT @ scaled
        return grad_q, grad_k, grad_v, None


def _images(q: Tensor, k: Tensor) -> list[slice]:
    """Slices of the batch whose scores fit the cache of the threads that work on them."""
    scores = q.shape[1] * q.shape[2] * k.shape[2]
    most = max(1, torch.get_num_threads() * SCORES_PER_THREAD // max(1, scores))
    number = max(1, -(-len(q) // most))
    size = max(1, -(-len(q) // number))  # even slices, rounded up: a remainder of one is slow
    return [slice(start, start + size) for start in range(0, len(q), size)]
