"""Merge the most similar tokens: bipartite matching, and attention weighted by token size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vitune.ops.attention import attention, prefers_attention


@dataclass(frozen=True)
class Matching:
    """Which tokens are merged into which.

    New positions: first the tokens of even position that stay, then all of odd position.

    Shapes: kept (b, e - r) and gone (b, r), indices among the e tokens of even position; into
        (b, r), for each removed one its partner's index among the o tokens of odd position.
    """

    kept: Tensor
    gone: Tensor
    into: Tensor

    def positions(self, num_tokens: int) -> Tensor:
        """The new position of each of `num_tokens` tokens (b, n)."""
        # Nothing is written in place: torch.func's batching allows none.
        num_kept, device = self.kept.shape[1], self.kept.device
        number = torch.arange(num_tokens, device=device)
        index = torch.cat([self.kept, self.gone], dim=1)  # (b, e)
        stay = number[:num_kept].expand_as(self.kept)
        even = torch.zeros_like(index).scatter(
            1, index, torch.cat([stay, self.into + num_kept], dim=1)
        )
        odd = (num_kept + number[: num_tokens // 2]).expand(index.shape[0], -1)  # (b, o)
        pairs = number // 2 + (number % 2) * index.shape[1]
        return torch.cat([even, odd], dim=1)[:, pairs]


@torch.no_grad()
def match_tokens(keys: Tensor, number: int) -> Matching:
    """Choose the `number` tokens of even position that are most similar to one of odd position.

    Similarity is the cosine of two keys; each even token is compared with every odd one and can
    merge only into its nearest.

    Shapes: keys (b, n, d); number ≤ n / 2 rounded down.
    Source: ToMe (ICLR 2023), bipartite soft matching. Deviation: tokens that stay keep their order.
    """
    unit = F.normalize(keys.float(), dim=-1)
    likeness, nearest = (unit[:, ::2] @ unit[:, 1::2].mT).max(-1)  # (b, e)
    order = likeness.sort(dim=-1, descending=True).indices  # ONNX has no sort that says "stable"
    gone = order[:, :number]
    return Matching(order[:, number:].sort(-1).values, gone, nearest.gather(1, gone))


def merged_tokens_reference(x: Tensor, sizes: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """Σ s_i x_i / Σ s_i and Σ s_i, token by token; the arguments are those of `merged_tokens`."""
    positions = matching.positions(x.shape[1])
    means, totals = [], []
    for tokens, counts, target in zip(x, sizes, positions, strict=True):
        groups = [target == position for position in range(int(target.max()) + 1)]
        totals.append(torch.stack([counts[group].sum() for group in groups]))
        sums = [(counts[group, None] * tokens[group]).sum(0) for group in groups]
        means.append(torch.stack(sums) / totals[-1][:, None])
    return torch.stack(means), torch.stack(totals)


def merged_tokens(x: Tensor, sizes: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """x'_j = Σ s_i x_i / Σ s_i over the tokens i merged into j, and the sizes Σ s_i.

    One product with a matrix that is mostly zeros: scattering by index is no faster on a CPU, and
        on a GPU the order of its sums varies.

    Shapes: x (b, n, d); sizes (b, n) float32; returns (b, n - r, d) and (b, n - r).
    """
    num_gone = matching.gone.shape[1]
    if not num_gone:
        return x, sizes
    positions = matching.positions(x.shape[1])
    places = torch.arange(x.shape[1] - num_gone, device=x.device)
    goes = (positions[:, None] == places[:, None]).to(sizes.dtype)  # (b, m, n)
    totals = (goes @ sizes[..., None]).squeeze(-1)  # (b, m)
    weights = sizes / totals.gather(1, positions)  # (b, n)
    return (goes * weights[:, None]).to(x.dtype) @ x, totals


def spread_tokens(x: Tensor, positions: Tensor) -> Tensor:
    """The merged token of every original one: their mean is the size-weighted mean over tokens.

    Shapes: x (b, m, d); positions (b, n) in [0, m); returns (b, n, d).
    """
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


def sized_attention_reference(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    """softmax(q kᵀ / √d + log s) v as written; the arguments are those of `sized_attention`."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT + sizes.log()[:, None, None].to(q.dtype)
    return scores.softmax(-1) @ v


def sized_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sizes: Tensor,
    *,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(q kᵀ / √d + log s) v: a token of size s counts as s equal ones.

    Shapes: q (b, h, n, d); k (b, h, m, d); v (b, h, m, e); sizes (b, m); returns (b, h, n, e).
    Args:
        dropout_p, scale: as `F.scaled_dot_product_attention` takes them.
    Source: ToMe (ICLR 2023), proportional attention.
    """
    logs = sizes.log()[:, None, None].to(q.dtype)  # (b, 1, 1, m)
    is_usual = not dropout_p and scale in (None, q.shape[-1] ** -0.5)
    if is_usual and torch.is_grad_enabled() and prefers_attention(q, k, v):
        return attention(q, k, v, logs)
    return F.scaled_dot_product_attention(q, k, v, logs, dropout_p, scale=scale)
