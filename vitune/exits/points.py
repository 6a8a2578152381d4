"""Where images may leave a network: the blocks after which an exit is possible, and its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

from torch import Tensor, nn

from vitune.backbones import find_sites, token_layout
from vitune.backbones.structure import unwrapped
from vitune.errors import BackboneError, VituneError
from vitune.methods import keeps_tokens_apart


@dataclass(frozen=True)
class Trunk:
    """A network as a row of blocks.

    Args:
        blocks: module names in forward order.
        norm: the final norm's module name, or None.
        width: features per token.
        num_prefix: tokens before the patches.
        reads_first: whether exits read the first token, as the head does; else they read the mean
            over the patches.
    """

    blocks: tuple[str, ...]
    norm: str | None
    width: int
    num_prefix: int
    reads_first: bool

    def pooled(self, tokens: Tensor) -> Tensor:
        """The input of an exit from tokens (b, n, d): (b, d)."""
        return tokens[:, 0] if self.reads_first else tokens[:, self.num_prefix :].mean(1)

    def check(self, at: Sequence[int]) -> tuple[int, ...]:
        """The exits `at` in ascending order.

        Raises:
            VituneError: there are none, one is given twice, or one is not between two blocks.
        """
        depth = len(self.blocks)
        places = [_whole(after) for after in at]
        wrong = [after for after in places if after is None or not 1 <= after < depth]
        if wrong or not places or len(set(places)) < len(places):
            text = ",".join(map(str, at))
            raise VituneError(
                f"--at: got {text!r}, expected different numbers of blocks from 1 to {depth - 1}: "
                f"the network has {depth}, and its own head follows the last."
            )
        return tuple(sorted(after for after in places if after is not None))


def find_trunk(model: nn.Module) -> Trunk:
    """The blocks of a plain transformer.

    Raises:
        BackboneError: not a transformer, one with windows or stages, or an adapter that mixes
            tokens (and so images of a batch) inside a linear layer.
    """
    if not keeps_tokens_apart(model):
        raise BackboneError(
            "exits: got a method that mixes tokens in a linear layer, expected one that does "
            "not: its predictions would change with the images that left. Train with another "
            "method."
        )
    sites = find_sites(model)
    blocks = [site for site in sites if site.role == "block"]
    staged = any(site.windowed or site.role in ("reduction", "conv") for site in sites)
    if not blocks or staged:
        raise BackboneError(
            "exits: got a backbone with windows, stages or convolutions, expected a plain ViT "
            "whose blocks all have the same tokens. Choose another backbone."
        )
    layout = token_layout(model)
    last = next(site for site in reversed(sites) if site.role == "fc2")
    norm = next((site.name for site in sites if site.role == "final_norm"), None)
    linear = unwrapped(model.get_submodule(last.name))
    assert isinstance(linear, nn.Linear)
    return Trunk(
        tuple(site.name for site in blocks),
        norm,
        linear.out_features,
        layout.num_prefix,
        layout.pooling.startswith("token"),
    )


def _whole(after: Any) -> int | None:
    """A whole number, NumPy's too; None for anything else."""
    try:
        return None if isinstance(after, bool) else index(after)
    except TypeError:
        return None
