"""Sites: where a method may act in a network, found from the structure of its modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from vitune.backbones import layouts
from vitune.backbones.block import block_sites, is_block
from vitune.backbones.heads import head_name, head_names
from vitune.backbones.selection import sites_with_roles
from vitune.backbones.site import ROLES, Site
from vitune.backbones.structure import find, find_norm, joined, root_prefix, unwrapped, walk
from vitune.backbones.tokens import TokenLayout, num_prefix_tokens, token_layout
from vitune.errors import BackboneError

__all__ = [
    "ROLES",
    "Site",
    "TokenLayout",
    "find_sites",
    "head_name",
    "head_names",
    "num_prefix_tokens",
    "sites_with_roles",
    "token_layout",
]


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """Every site of `model` in forward order; a block comes before its parts.

    Convolutional networks give `conv` sites (stem, blocks and shortcuts) and the head. A network
    with transformer or ConvNeXt blocks gives their linears and, with role `conv`, a ConvNeXt's
    depthwise convolutions and all convolutions outside the blocks except the patch embedding. If
    only one of several towers embeds patches (CLIP's vision tower, a masked autoencoder's encoder),
    the blocks of the others are left out. In a transformers model with a head, only the base model
    has sites.

    Raises:
        BackboneError: no transformer block, no ConvNeXt block and no convolutional network.
    """
    prefix = root_prefix(model)
    root = model.get_submodule(prefix)
    inner = list(_inner_sites(root, ""))
    blocks = [site for site in inner if site.role == "block"]
    if not blocks and not _mostly_convolutional(root):
        raise BackboneError(_unrecognised(root))
    tower, stem = _patch_tower(root, blocks)
    tower = tower or _named_tower(root)
    if tower:
        inner = list(_inner_sites(root, tower))
        blocks = [site for site in inner if site.role == "block"]
    heads = head_names(root)
    inner = [site for site in inner if site.name not in (stem, *heads)]
    first = [] if stem is None else [Site(stem, "patch_embed", None)]
    last = _final_norm(root, blocks)
    found = [*first, *inner, *last, *(Site(name, "head", None) for name in heads)]
    return tuple(replace(site, name=joined(prefix, site.name)) for site in found)


def _inner_sites(root: nn.Module, tower: str) -> Iterator[Site]:
    """Sites of all blocks below `tower`, and the reductions and convolutions between them."""
    index = 0
    for name, module in walk(root.get_submodule(tower), is_block, tower):
        original = unwrapped(module)
        if is_block(module):
            yield from block_sites(name, module, index)
            index += 1
        elif isinstance(original, nn.Linear) and name.split(".")[-1] == layouts.REDUCTION:
            yield Site(name, "reduction", None)
        elif isinstance(original, nn.Conv2d):
            yield Site(name, "conv", None)


def _patch_tower(root: nn.Module, blocks: list[Site]) -> tuple[str, str | None]:
    """The tower whose blocks follow a patch embedding, and that embedding's name."""
    for block in blocks:
        for tower in _around(block):
            kinds = (nn.Conv2d, nn.Conv3d, nn.Linear)
            name = find(root.get_submodule(tower), layouts.PATCH_EMBED, kinds)
            if name is not None:
                return tower, joined(tower, name)
    return "", None


def _named_tower(root: nn.Module) -> str:
    """The name transformers gives to the network without its head; '' for other libraries."""
    name = getattr(root, "base_model_prefix", None)
    return name if name in root._modules else ""


def _final_norm(root: nn.Module, blocks: list[Site]) -> list[Site]:
    is_read = type(root).__name__ not in layouts.IDLE_FINAL_NORM
    for tower in _around(blocks[-1]) if blocks and is_read else []:
        name = find_norm(root.get_submodule(tower), layouts.FINAL_NORM)
        if name is not None:
            return [Site(joined(tower, name), "final_norm", None)]
    return []


def _around(block: Site) -> list[str]:
    """Names of the modules around a block, outermost first; '' is the network."""
    parts = block.name.split(".")[:-1]
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def _mostly_convolutional(root: nn.Module) -> bool:
    """Whether convolutions hold most of the weights outside the head."""
    in_head = sum(_num_parameters(root.get_submodule(name)) for name in head_names(root))
    in_conv = sum(_num_parameters(m) for m in root.modules() if isinstance(m, nn.Conv2d))
    return in_conv > 0.5 * (_num_parameters(root) - in_head)


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _unrecognised(root: nn.Module) -> str:
    def listed(role: str) -> str:
        return ", ".join("+".join(paths) for paths in layouts.LINEARS[role])

    return (
        f"model: got {type(root).__name__} with no block that is recognised, expected blocks with "
        f"an attention output ({listed('attn_out')}) or a depthwise convolution "
        f"({', '.join(layouts.DEPTHWISE)}) and two MLP linears ({listed('fc1')}; {listed('fc2')}), "
        f"or a network that is mostly convolutions. Try a ViT, Swin, ConvNeXt or ResNet."
    )
