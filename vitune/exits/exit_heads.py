"""The heads of exits added to a finished run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitune.errors import VituneError
from vitune.exits.points import Trunk
from vitune.ops import exit_adapter

Head = Callable[[Tensor], Tensor]
"""Tokens after a block (b, n, d) -> logits (b, c)."""


class ExitHeads(nn.Module):
    """Exit e of a frozen network: logits_e = LN(A_e(p)) W_eᵀ + b_e, p the pooled tokens.

    A_e is MET's E-adapter (`vitune.ops.exit_adapter`), with U and V shared by all exits; LN is the
    network's own final norm, frozen. All start at A = identity and zero logits.

    Shapes: down U (d, r); up V (r, d); scale c (e, r); shift β (e, d); weight (e, c, d);
        bias (e, c).
    """

    def __init__(self, num_exits: int, width: int, num_classes: int, rank: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.down = nn.Parameter(torch.empty(width, rank).uniform_(-bound, bound))
        self.up = nn.Parameter(torch.zeros(rank, width))
        self.scale = nn.Parameter(torch.ones(num_exits, rank))
        self.shift = nn.Parameter(torch.zeros(num_exits, width))
        self.weight = nn.Parameter(torch.zeros(num_exits, num_classes, width))
        self.bias = nn.Parameter(torch.zeros(num_exits, num_classes))

    @property
    def num_exits(self) -> int:
        """The number of exits, without the network's own head."""
        return len(self.scale)

    def features(self, pooled: Tensor, index: int, norm: nn.Module) -> Tensor:
        """The input of the head of exit `index`, (b, d) -> (b, d)."""
        adapted = exit_adapter(pooled, self.down, self.up, self.scale[index], self.shift[index])
        own = next(norm.parameters(), adapted).dtype  # of a network cast to bfloat16
        normed: Tensor = norm(adapted.to(own))
        return normed.to(adapted.dtype)

    def classify(self, features: Tensor, index: int) -> Tensor:
        """Logits (b, c) of exit `index`."""
        return features @ self.weight[index].T + self.bias[index]

    def head(self, index: int, trunk: Trunk, norm: nn.Module) -> Head:
        """Exit `index` as a function of the tokens after its block; it can be copied and sent."""
        return partial(self._logits, index, trunk, norm)

    def _logits(self, index: int, trunk: Trunk, norm: nn.Module, tokens: Tensor) -> Tensor:
        pooled = trunk.pooled(tokens).to(self.down.dtype)
        return self.classify(self.features(pooled, index, norm), index)

    def save(self, path: Path) -> None:
        """Write the tensors."""
        state = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        save_file(state, path, metadata={"format": "pt"})

    @classmethod
    def load(cls, path: Path, num_exits: int, width: int, num_classes: int) -> ExitHeads:
        """The heads in a file.

        Raises:
            VituneError: no such file, a damaged one, or heads of another network.
        """
        try:
            state = load_file(path)
            heads = cls(num_exits, width, num_classes, state["down"].shape[1])
            heads.load_state_dict(state)
        except (OSError, SafetensorError, KeyError, IndexError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise VituneError(
                f"{path}: got heads that cannot be used ({reason}), expected those of {num_exits} "
                f"exits of width {width}. Add the exits again."
            ) from None
        return heads.requires_grad_(False).eval()


def norm_of(model: nn.Module, trunk: Trunk) -> nn.Module:
    """The final norm that exits share with the network."""
    return nn.Identity() if trunk.norm is None else model.get_submodule(trunk.norm)


def num_parameters(num_exits: int, width: int, num_classes: int, rank: int) -> int:
    """2dr + e(r + d) in adapters and e(d + 1)c in heads."""
    return 2 * width * rank + num_exits * (rank + width + (width + 1) * num_classes)


def parse_places(text: str) -> Sequence[int]:
    """(4, 7, 10) from "4,7,10".

    Raises:
        VituneError: not whole numbers.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.lstrip("-").isdecimal() for part in parts):
        raise VituneError(f"--at: got {text!r}, expected numbers of blocks, e.g. --at 4,7,10.")
    return [int(part) for part in parts]
