"""The depth of a module: the network's block that contains it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from vitune.backbones.sites import Site


def block_names(network: nn.Module, sites: Iterable[Site]) -> list[str]:
    """Names of the blocks in order of depth.

    A convolutional network has no block sites; there the innermost modules around its convolutions
    count, skipping lists of layers (a shortcut's convolution and norm).
    """
    sites = tuple(sites)
    blocks = [site.name for site in sites if site.role == "block"]
    if blocks:
        return blocks
    around = (_around(network, site.name) for site in sites if site.role == "conv")
    return list(dict.fromkeys(name for name in around if name))


def depth_of(module: str, blocks: Sequence[str]) -> int | None:
    """Index of the block that is or contains the module; None outside all blocks."""
    inside = f"{module}."
    return next((index for index, name in enumerate(blocks) if inside.startswith(f"{name}.")), None)


def _around(network: nn.Module, name: str) -> str:
    """The innermost module around `name` that is more than a list of layers, '' for the network."""
    while name:
        name = name.rpartition(".")[0]
        if not isinstance(network.get_submodule(name), nn.Sequential):
            return name
    return name
