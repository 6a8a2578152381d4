"""MET: adapters along the blocks and exits after some of them, trained together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.backbones import find_sites, token_layout
from vitune.backbones.heads import num_outputs
from vitune.errors import BackboneError, VituneError
from vitune.methods.authoring import (
    BlockConfig,
    Call,
    MethodLayer,
    Site,
    WrapperLayer,
    block_width,
    check_rank,
    require_features_last,
    uniform,
    with_tokens,
)
from vitune.objectives import graph_penalty
from vitune.ops import exit_adapter


@dataclass
class METConfig(BlockConfig):
    """x' = A_e(x) after each block; logits_e = LN(A_e(x'))[CLS] W_eᵀ + b_e; Σ_e w CE_e + λ G_e.

    A_e(x) = x + (GELU(x U) ⊙ c_e) V + β_e, with e the exit that the block leads to.

    Shapes: U (d, r) and V (r, d), shared by all exits; per exit c_e (r,), β_e (d,); per early
        exit W_e (c, d), b_e (c,). The last exit's head is the network's own.
    Args:
        rank: r.
        exits: numbers of blocks after which there is an early exit; None is a third, seven
            twelfths and five sixths of the depth: 4, 7 and 10 of 12.
        exit_weight: w, of the early exits' cross-entropies; the last exit's is 1.
        graph: λ of the graph term G_e (`vitune.objectives.graph_penalty`) of every early exit; 0
            leaves it out.

    Raises:
        VituneError: a value out of range, roles or blocks, or an exit outside the depth.
        BackboneError: at injection, if the backbone is not a plain transformer.
    Source: MET (arXiv 2409.13999). Only the abstract was available: exit positions, what is
        exit-specific, the graph and all weights are a RECONSTRUCTION. Mean pooling if the
        backbone's head reads no class token is ours too.
    """

    rank: int = field(default=32)
    exits: tuple[int, ...] | None = field(default=None)
    exit_weight: float = field(default=1.0)
    graph: float = field(default=0.1)

    method = "met"
    title = "MET"
    source = "Multiple-Exit Tuning, arXiv 2409.13999 (reconstruction)"
    formula = "2·d·r + e·(r + d) + (e - 1)·(d + 1)·c, e exits, c classes"
    mergeable = False
    exposes_delta = False
    shares_parameters = True
    acts_in_windows = False
    brings_exits = True
    narrowed_by = frozenset({"target_modules", "exclude_modules"})
    counts_on_vit_b16 = (({}, 52_352 + 3 * 7_690),)  # with the heads of three early exits

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank)
        if isinstance(self.exits, int):
            self.exits = (self.exits,)
        if self.exits is not None:
            self.exits = tuple(sorted(self.exits))
        for name in ("exit_weight", "graph"):
            if getattr(self, name) < 0:
                raise VituneError(f"{name}: got {getattr(self, name)!r}, expected 0 or more.")

    @classmethod
    def reason_against(cls, option: str) -> str:
        """Why the method does not support an option."""
        return "MET leads every block to an exit"

    def choose(self, sites: Sequence[Site]) -> Sequence[Site]:
        found = super().choose(sites)
        self.ends(len(found))
        return found

    def ends(self, depth: int) -> tuple[int, ...]:
        """How many blocks come before each exit, including the last one.

        Raises:
            VituneError: an exit outside the depth, or one twice.
        """
        usual = {max(1, round(depth * part / 12)) for part in (4, 7, 10)} - {depth}
        early = tuple(sorted(usual)) if self.exits is None else self.exits
        if any(not 1 <= after < depth for after in early) or len(set(early)) < len(early):
            raise VituneError(
                f"exits: got {early!r}, expected different numbers of blocks from 1 to "
                f"{depth - 1}: the network has {depth}, and its own head follows the last."
            )
        return (*early, depth)

    def check(self, model: nn.Module, sites: Sequence[Site]) -> None:
        require_features_last(model, sites, self.title)
        widths = sorted({block_width(model, site) for site in sites})
        if len(widths) > 1:
            raise BackboneError(
                f"{self.title}: got blocks of widths {widths}, expected one width, for all exits "
                "share U and V. Choose another method ('vitune methods')."
            )

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        return ExitingBlock

    def new_shared(self, model: nn.Module, sites: Sequence[Site]) -> nn.Module:
        return ExitAdapters(self, model, sites)

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        width, num_exits = block_width(model, sites[0]), len(self.ends(len(sites)))
        heads = (num_exits - 1) * (width + 1) * num_outputs(model)
        return 2 * width * self.rank + num_exits * (self.rank + width) + heads


class ExitAdapters(nn.Module):
    """All parameters of one MET adapter, and where each exit reads."""

    def __init__(self, config: METConfig, model: nn.Module, sites: Sequence[Site]) -> None:
        super().__init__()
        width, classes = block_width(model, sites[0]), num_outputs(model)
        layout, self.ends = token_layout(model), config.ends(len(sites))
        self.num_prefix = layout.num_prefix
        self.reads_first = layout.pooling.startswith("token")
        norm = next((s.name for s in find_sites(model) if s.role == "final_norm"), None)
        # In a tuple: the norm belongs to the network and is not stored twice.
        self.norm = (nn.Identity() if norm is None else model.get_submodule(norm),)
        self.down = nn.Parameter(uniform((width, config.rank), 1 / math.sqrt(width)))
        self.up = nn.Parameter(torch.zeros(config.rank, width))
        for end in self.ends:
            self.register_parameter(f"scale_{end}", nn.Parameter(torch.ones(config.rank)))
            self.register_parameter(f"shift_{end}", nn.Parameter(torch.zeros(width)))
        for end in self.ends[:-1]:
            self.register_parameter(f"head_{end}", nn.Parameter(torch.zeros(classes, width)))
            self.register_parameter(f"bias_{end}", nn.Parameter(torch.zeros(classes)))

    def adapted(self, x: Tensor, end: int) -> Tensor:
        """A_e on tokens, in their dtype."""
        names = ("down", "up", f"scale_{end}", f"shift_{end}")
        return exit_adapter(x, *(getattr(self, name).to(x.dtype) for name in names))

    def features(self, tokens: Tensor, end: int) -> Tensor:
        """What the head of an early exit reads, (b, n, d) -> (b, d)."""
        read = tokens[:, 0] if self.reads_first else tokens[:, self.num_prefix :].mean(1)
        features: Tensor = self.norm[0](self.adapted(read, end))
        return features

    def classify(self, features: Tensor, end: int) -> Tensor:
        """Logits (b, c) of an early exit."""
        head, bias = getattr(self, f"head_{end}"), getattr(self, f"bias_{end}")
        return F.linear(features.to(head.dtype), head, bias)

    def exit_logits(self, end: int, tokens: Tensor) -> Tensor:
        """Logits (b, c) of an early exit from the tokens (b, n, d) that reach it."""
        return self.classify(self.features(tokens, end), end)


class ExitingBlock(WrapperLayer):
    """A block followed by the E-adapter of its segment, and perhaps by an exit."""

    exposes_delta = False

    def around(self, inner: Call, adapter: str, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return with_tokens(inner(x, *args, **kwargs), lambda y: self._behind(y, adapter))

    def exit_head(self, adapter: str) -> Callable[[Tensor], Tensor] | None:
        shared, end = self._place(adapter)
        if end != self._blocks_done or end == shared.ends[-1]:
            return None
        return partial(shared.exit_logits, end)

    def penalty(self, adapter: str, progress: float, labels: Tensor | None = None) -> Tensor | None:
        """w CE_e + λ G_e of the last forward pass, for a block followed by an early exit."""
        features = self.__dict__.pop("_features", None)
        if features is None or labels is None:
            return None
        (shared, end), config = self._place(adapter), self.configs[adapter]
        logits = shared.classify(features, end).float()
        loss = config.exit_weight * F.cross_entropy(logits, labels)
        return loss + config.graph * graph_penalty(features, labels) if config.graph else loss

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept between a forward pass and its loss, which cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "_features"}

    def _behind(self, y: Tensor, adapter: str) -> Tensor:
        shared, end = self._place(adapter)
        y = shared.adapted(y, end)
        if end == self._blocks_done:
            if end == shared.ends[-1]:  # the side branch of the last exit is the network itself
                return shared.adapted(y, end)
            if self.training and torch.is_grad_enabled():
                self.__dict__["_features"] = shared.features(y, end)
        return y

    @property
    def _blocks_done(self) -> int:
        assert self.site.block is not None
        return self.site.block + 1

    def _place(self, adapter: str) -> tuple[ExitAdapters, int]:
        """The shared state, and the exit that this block leads to."""
        shared = self.shared[adapter]
        assert isinstance(shared, ExitAdapters)
        return shared, next(end for end in shared.ends if end >= self._blocks_done)
