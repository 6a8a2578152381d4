"""How a vision transformer lays out its tokens: prefix tokens, patch grid and pooling."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class TokenLayout:
    num_prefix: int
    grid: tuple[int, int] | None
    pooling: str


def token_layout(model: nn.Module) -> TokenLayout:
    raise NotImplementedError


def num_prefix_tokens(model: nn.Module) -> int:
    return token_layout(model).num_prefix
