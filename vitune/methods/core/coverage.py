"""How much of a network's linear and convolution weights a method adapts, and a notice about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from vitune.backbones.fingerprint import bare_name
from vitune.backbones.sites import find_sites, head_names
from vitune.backbones.structure import network, unwrapped, walk
from vitune.errors import VituneError

ENOUGH = 0.95
"""Share from which on there is no notice."""

WITH_CONVOLUTIONS = ("linears", "norms", "conv")
"""Roles that adapt the convolutions between blocks too."""

_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


def weight_coverage(config: Any, model: nn.Module) -> float:
    """The share of linear and convolution weights outside the head that `config` adapts.

    Raises:
        VituneError: the method does not act on `model`.
    """
    adapted = {bare_name(site.name) for site in config.choose(find_sites(model))}
    weights = list(_weights(network(model)))
    total = sum(size for _, size in weights)
    return sum(size for name, size in weights if name in adapted) / max(1, total)


def coverage_notice(config: Any, model: nn.Module) -> str:
    """A sentence if a method with its own choice of sites adapts less than ENOUGH; else ''."""
    share = weight_coverage(config, model)
    if config.roles is not None or config.blocks is not None or share >= ENOUGH:
        return ""
    text = (
        f"{config.title} adapts {100 * share:.1f} % of this backbone's linear and convolution "
        "weights; the rest stays frozen."
    )
    try:
        more = weight_coverage(replace(config, roles=WITH_CONVOLUTIONS), model)
    except VituneError:
        return text
    hint = f" With roles={','.join(WITH_CONVOLUTIONS)} it adapts {100 * more:.1f} %."
    return text + hint if more > share + 0.01 else text


def method_notice(model: Any) -> str:
    """A notice about the method that a PEFT model trains, or ''."""
    config = model.peft_config[model.active_adapter]
    return config.notice(model) if hasattr(config, "notice") else ""


def _weights(root: nn.Module) -> Iterator[tuple[str, int]]:
    """Bare names of linears and convolutions outside the head, with the size of their weights."""
    heads = {id(unwrapped(root.get_submodule(name))) for name in head_names(root)}
    for name, module in walk(root, lambda _: False):
        original = unwrapped(module)
        if isinstance(original, _MATRICES) and id(original) not in heads:
            own = original.parameters(recurse=False)
            yield bare_name(name), sum(p.numel() for p in own if p.dim() > 1)
