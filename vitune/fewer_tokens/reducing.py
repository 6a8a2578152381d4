"""Fewer tokens in any vision transformer: hooks around its blocks, without changing the network.

Patches are the last tokens of a sequence; tokens before them (class and register tokens, a method's
prompts) are never dropped or merged. Keys are read, and token sizes passed to attention, in calls
of `F.scaled_dot_product_attention`: PyTorch's function mode wraps each block that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from timm.layers.patch_dropout import PatchDropout
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vitune.errors import BackboneError
from vitune.fewer_tokens.token_plan import TokenPlan
from vitune.ops import match_tokens, merged_tokens, sized_attention, spread_tokens


@dataclass(frozen=True)
class Patches:
    """The patches that enter a block.

    Shapes: sizes (b, m), how many original patches each represents; positions (b, n), where each
        original one is now. Both None before the first merging.
    """

    number: int
    first_number: int
    sizes: Tensor | None = None
    positions: Tensor | None = None


class TokenReducer:
    """A token plan at work on a network; `remove` ends it.

    Args:
        blocks: of the network, in forward order.
        num_prefix: tokens before the patches.
        spreads: whether to give every original patch its merged token after the last block, for a
            head that reads more than the class token.
    """

    def __init__(
        self, plan: TokenPlan, blocks: Sequence[nn.Module], num_prefix: int, *, spreads: bool
    ) -> None:
        self.plan, self.num_prefix = plan, num_prefix
        self.depth, self.spreads = len(blocks), spreads
        self.places = plan.places(self.depth)
        self.dropout = PatchDropout(plan.share, num_prefix) if plan.kind == "drop" else None
        self.forced = False
        self._entering: dict[int, Patches] = {}
        self._modes: list[SizedAttention | None] = []
        self._removals: dict[int, dict[int, int]] = {}
        self._handles = []
        for index, block in enumerate(blocks):
            self._handles += [
                block.register_forward_pre_hook(partial(self._enter, index), with_kwargs=True),
                block.register_forward_hook(partial(self._leave, index), always_call=True),
            ]

    def remove(self) -> None:
        """Restore the network to use all tokens."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def always(self) -> Iterator[None]:
        """Within the context, the plan also applies in evaluation mode, whatever it says."""
        self.forced = True
        try:
            yield
        finally:
            self.forced = False

    def _acts_on(self, block: nn.Module) -> bool:
        acts = self.plan.in_training if block.training else self.plan.in_inference
        return acts or self.forced

    def _enter(self, index: int, block: nn.Module, args: Any, kwargs: Any) -> Any:
        if not self._acts_on(block):
            return None
        # Checkpointed blocks are entered again in the backward pass, last one first: state is kept
        # by block index, and modes nest.
        self._modes.append(None)
        x, rest = _first_given(args, kwargs)
        if index == 0:
            if self.dropout is not None:
                self.dropout.train()
                x = self.dropout(x)
            number = x.shape[1] - self.num_prefix
            self._entering[0] = Patches(number, number)
        patches = self._entering[index]
        if patches.sizes is not None or index in self.places:
            self._modes[-1] = mode = SizedAttention(patches)
            mode.__enter__()
        return rest(x)

    def _leave(self, index: int, block: nn.Module, args: Any, output: Any) -> Any:
        if not self._acts_on(block):
            return None
        mode = self._modes.pop()
        if mode is not None:
            mode.__exit__(None, None, None)
        if output is None:  # the block raised
            return None
        patches = self._entering[index]
        x = output[0] if isinstance(output, tuple) else output
        if index in self.places:
            assert mode is not None
            x, patches = self._merged(x, patches, mode.keys, self._number(index, patches))
        if index < self.depth - 1:
            self._entering[index + 1] = patches
        elif self.spreads and patches.positions is not None:
            prefix, merged = _cut(x, patches.number)
            x = torch.cat([prefix, spread_tokens(merged, patches.positions)], dim=1)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    def _number(self, index: int, patches: Patches) -> int:
        first = patches.first_number
        if first not in self._removals:
            self._removals[first] = self.plan.removals(self.depth, first)
        return self._removals[first][index]

    def _merged(
        self, x: Tensor, patches: Patches, keys: Tensor | None, number: int
    ) -> tuple[Tensor, Patches]:
        if not number:
            return x, patches
        if keys is None:
            raise BackboneError(NO_KEYS)
        prefix, own = _cut(x, patches.number)
        sizes = patches.sizes
        if sizes is None:
            sizes = x.new_ones(own.shape[:2], dtype=torch.float32)
        matching = match_tokens(keys, number)
        own, sizes = merged_tokens(own, sizes, matching)
        positions = matching.positions(patches.number)
        if patches.positions is not None:
            positions = positions.gather(1, patches.positions)
        after = replace(patches, number=patches.number - number, sizes=sizes, positions=positions)
        return torch.cat([prefix, own], dim=1), after


class SizedAttention(TorchFunctionMode):
    """Records the patches' keys, and counts each patch in attention as often as its size."""

    def __init__(self, patches: Patches) -> None:
        super().__init__()
        self.patches = patches
        self.keys: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        number = self.patches.number
        if key.dim() != 4 or key.shape[-2] < number or attn_mask is not None or is_causal:
            raise BackboneError(NO_KEYS)
        self.keys = key[..., -number:, :].detach().mean(1)  # (b, m, d)
        if self.patches.sizes is None:
            return F.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout_p, scale=scale, enable_gqa=enable_gqa
            )
        sizes = F.pad(self.patches.sizes, (key.shape[-2] - number, 0), value=1.0)
        return sized_attention(query, key, value, sizes, dropout_p=dropout_p, scale=scale)


NO_KEYS = (
    "--tokens: got attention whose keys cannot be read (it has a mask, windows, or no call of "
    "F.scaled_dot_product_attention), expected plain attention over all tokens. Use drop:0.5 or "
    "keep."
)


def _cut(x: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The tokens before the last `number` ones, and those."""
    return x[:, : x.shape[1] - number], x[:, x.shape[1] - number :]


def _first_given(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor, Callable[[Tensor], tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The tokens passed to a block, by position or name, and the call with others."""
    if args:
        return args[0], lambda x: ((x, *args[1:]), dict(kwargs))
    name = next(iter(kwargs))
    return kwargs[name], lambda x: ((), {**kwargs, name: x})
