"""Refusals of blocks whose tokens are not what a method expects, checked in one forward pass.

A network that takes no image of a usual size cannot be checked this way, and passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn import functional as F

from vitune.backbones.observation import Call, Observation, observe, run_once
from vitune.backbones.sites import Site, token_layout
from vitune.backbones.wording import one_line
from vitune.errors import BackboneError
from vitune.methods.core.block_hooks import with_tokens
from vitune.methods.core.bottleneck import block_width
from vitune.methods.core.wrapper import WrapperLayer

REMEDY = "Leave the block out with blocks=..., or choose another method ('vitune methods')."


def require_features_last(
    model: nn.Module, sites: Sequence[Site], by: str, *, tapped: Mapping[str, str] | None = None
) -> None:
    """Refuse blocks that do not return tokens with their features on the last axis.

    Args:
        tapped: by block, a module inside it whose input must have as many tokens as the output.

    Raises:
        BackboneError: there is such a block.
    """
    inner = tapped or {}
    with _plain_blocks(model):
        seen = observe(model, [*(site.name for site in sites), *inner.values()])
    if seen is None:
        return
    for site in sites:
        width = block_width(model, site)
        for index, call in enumerate(calls_of(seen, site.name, by)):
            if call.returned[-1:] != (width,):
                raise odd_tokens(site, by, call.returned, f"{width} features on the last axis")
            taken = calls_of(seen, inner[site.name], by)[index].given if inner else call.returned
            if taken[-1:] != (width,) or math.prod(taken) != math.prod(call.returned):
                raise odd_tokens(site, by, taken, f"those of the block's output, {call.returned}")


def prefix_tokens(
    model: nn.Module, places: Sequence[tuple[Site, str]], by: str, grid: tuple[int, int]
) -> dict[int | None, int]:
    """How many tokens come before the patches, by block; in a CaiT or ConViT some blocks have none.

    Args:
        places: pairs of a site and the name of a module whose output must be tokens of the patch
            grid.

    Raises:
        BackboneError: a module returns other tokens than a few prefix tokens and the patch grid.
    """
    declared = token_layout(model).num_prefix
    found = {site.block: declared for site, _ in places}
    with _plain_blocks(model):
        seen = observe(model, [name for _, name in places])
    if seen is None:
        return found
    for site, name in places:
        for call in calls_of(seen, name, by):
            shape = call.returned
            found[site.block] = shape[1] - math.prod(grid) if len(shape) == 3 else -1
            if not 0 <= found[site.block] <= declared:
                expected = f"at most {declared} prefix tokens and {grid[0]} x {grid[1]} patches"
                raise odd_tokens(site, by, shape, expected)
    return found


def calls_of(seen: Observation, name: str, by: str) -> tuple[Call, ...]:
    """The calls of one module.

    Raises:
        BackboneError: there were none.
    """
    if not seen.calls[name]:
        raise BackboneError(
            f"{by} at {name!r}: got a module that the network does not call, expected one that "
            f"it calls. {REMEDY}"
        )
    return seen.calls[name]


def odd_tokens(site: Site, by: str, shape: tuple[int, ...], expected: str) -> BackboneError:
    """The error for a block whose tokens have the wrong shape."""
    return BackboneError(
        f"{by} at {site.name!r}: got tokens of shape {shape} for one image, expected {expected}. "
        f"{REMEDY}"
    )


def require_more_tokens(
    model: nn.Module,
    sites: Sequence[Site],
    entrances: Sequence[str],
    exits: Sequence[str],
    by: str,
    *,
    number: int,
) -> None:
    """Refuse blocks that do not accept `number` more tokens than the network gives them.

    Args:
        sites: the blocks.
        entrances: names of the blocks before which the tokens are inserted; `exits` are those after
            which they are removed again.

    Raises:
        BackboneError: a block is called with more than tokens, or fails with more of them.
    """
    with _plain_blocks(model):
        seen = observe(model, [site.name for site in sites])
    if seen is None:
        return
    for site in sites:
        width = block_width(model, site)
        for call in calls_of(seen, site.name, by):
            if call.num_further:
                raise BackboneError(
                    f"{by} at {site.name!r}: got a block that is called with a mask, positions or "
                    f"further tokens, expected tokens alone. {REMEDY}"
                )
            if len(call.given) != 3 or call.given[-1] != width or call.returned != call.given:
                raise odd_tokens(site, by, call.returned, f"(1, n, {width}) before and after it")
    # One of two successive numbers is not a square, which a block may mistake for a larger grid.
    for more in (number, number + 1):
        with _plain_blocks(model), _lengthened(model, entrances, exits, more):
            try:
                run_once(model, seen.image_size)
            except Exception as error:
                raise BackboneError(
                    f"{by}: got blocks that fail with {more} more tokens ({one_line(error)}), "
                    f"expected ones that take any number. Choose another method ('vitune methods')."
                ) from error


@contextmanager
def _plain_blocks(model: nn.Module) -> Iterator[None]:
    """Within the context, wrappers that earlier adapters put around modules are skipped."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, WrapperLayer)]
    states = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, state in zip(layers, states, strict=True):
            layer._disable_adapters = state


@contextmanager
def _lengthened(
    model: nn.Module, entrances: Sequence[str], exits: Sequence[str], number: int
) -> Iterator[None]:
    """Within the context, `number` more tokens enter before `entrances` and leave after `exits`."""

    def longer(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (F.pad(args[0], (0, 0, 0, number)), *args[1:])

    def shorter(_: nn.Module, args: Any, output: Any) -> Any:
        return with_tokens(output, lambda tokens: tokens[:, :-number])

    handles = [model.get_submodule(name).register_forward_pre_hook(longer) for name in entrances]
    handles += [model.get_submodule(name).register_forward_hook(shorter) for name in exits]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
