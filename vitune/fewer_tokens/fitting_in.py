"""Apply a token plan to a network, or say why that network does not support it."""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftConfig
from torch import nn

from vitune.backbones import (
    Observation,
    Site,
    find_sites,
    logits_of,
    observe,
    one_line,
    run_once,
    token_layout,
)
from vitune.errors import BackboneError, VituneError
from vitune.fewer_tokens.reducing import TokenReducer
from vitune.fewer_tokens.token_plan import TokenPlan

CLASS_TOKEN = "token"
FEW_PATCHES = 64
"""Patches of an image up to which merging half of them was measured to cost accuracy."""


def reduce_tokens(model: nn.Module, plan: TokenPlan) -> TokenReducer | None:
    """Make `model` drop or merge tokens from now on; None for a plan that keeps them all.

    Args:
        model: a ViT, with or without adapters.

    Raises:
        VituneError: blocks that the network does not have, or more merging than patches.
        BackboneError: windows, no blocks, positions inside attention, dense outputs, or a method
            that needs every patch at its position.
    """
    if plan.kind == "keep":
        return None
    _refuse_methods(model, plan)
    try:
        sites = [site for site in find_sites(model) if site.role == "block"]
        layout = token_layout(model)
    except BackboneError as error:
        raise _refusal(plan, "a network without a row of transformer blocks") from error
    if not sites or any(site.windowed for site in sites):
        raise _refusal(plan, "blocks that attend in windows" if sites else "no transformer blocks")
    seen = observe(model, [site.name for site in sites])
    if seen is not None:
        _refuse_shapes(seen, sites, plan, layout.num_prefix)
    blocks = [model.get_submodule(site.name) for site in sites]
    spreads = plan.kind == "merge" and layout.pooling != CLASS_TOKEN
    reducer = TokenReducer(plan, blocks, layout.num_prefix, spreads=spreads)
    if seen is not None:
        try:
            _rehearse(model, reducer, seen)
        except Exception:  # on any error the network is left without hooks
            reducer.remove()
            raise
    return reducer


def few_patches_notice(model: nn.Module, plan: TokenPlan) -> str:
    """A warning where images have few patches to spare, or ''."""
    if plan.kind == "keep":
        return ""
    grid = token_layout(model).grid
    if grid is None or grid[0] * grid[1] > FEW_PATCHES:
        return ""
    return (
        f"tokens {plan}: images have only {grid[0] * grid[1]} patches. In tests with 64, merging "
        "half of them cost 2 to 7 points of accuracy; 'vitune bench pareto' measures it on yours."
    )


def lost_exits_notice(model: nn.Module, plan: TokenPlan) -> str:
    """A warning where a method trains exits that a network with merged tokens cannot use, or ''."""
    configs: dict[str, PeftConfig] = getattr(model, "peft_config", {})
    exiting = [config for config in configs.values() if getattr(config, "brings_exits", False)]
    if not plan.in_inference or not exiting:
        return ""
    title = getattr(exiting[0], "title", exiting[0].peft_type)
    return (
        f"tokens {plan}: the early exits of {title} cannot be used where inference merges tokens, "
        "and every image will run to the end. To use them, merge in training only "
        f"({plan}:train) or keep every token."
    )


def _refuse_methods(model: nn.Module, plan: TokenPlan) -> None:
    """Refuse methods that infer a patch's grid position from its position in the sequence."""
    configs: dict[str, PeftConfig] = getattr(model, "peft_config", {})
    for config in configs.values():
        if getattr(config, "needs_every_patch", False):
            title = getattr(config, "title", config.peft_type)
            raise _refusal(plan, f"method {title}, which needs every patch at its position")


def _refuse_shapes(
    seen: Observation, sites: Sequence[Site], plan: TokenPlan, num_prefix: int
) -> None:
    """Refuse blocks that do not pass on one sequence of tokens; a method's prompts may join it."""
    calls = [seen.calls[site.name] for site in sites]
    for site, of_block in zip(sites, calls, strict=True):
        if len(of_block) != 1:
            raise _refusal(plan, f"block {site.name!r}, not called once per image")
        if of_block[0].num_further:
            raise _refusal(plan, f"block {site.name!r}, called with a mask or positions")
    first = calls[0][0].given or calls[0][0].returned
    for site, (call,) in zip(sites, calls, strict=True):
        found = call.returned
        if len(first) != 3 or len(found) != 3 or found[1] < first[1] or found[2] != first[2]:
            raise _refusal(plan, f"block {site.name!r}, which has its own kind of tokens")
    plan.removals(len(sites), first[1] - num_prefix)


def _rehearse(model: nn.Module, reducer: TokenReducer, seen: Observation) -> None:
    """Send one image through with fewer tokens."""
    try:
        with reducer.always():
            logits = logits_of(run_once(model, seen.image_size))
    except VituneError:
        raise
    except Exception as error:
        reason = f"a network that fails with fewer tokens ({one_line(error)})"
        raise _refusal(reducer.plan, reason) from error
    if logits.dim() != 2:
        raise _refusal(reducer.plan, "a network with dense outputs")


def _refusal(plan: TokenPlan, found: str) -> BackboneError:
    return BackboneError(
        f"--tokens: got '{plan}' with {found}, expected a plain ViT and a method that take any "
        "number of patches. Use --tokens keep."
    )
