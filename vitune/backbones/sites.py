"""Sites: where a method may act in a network, found from the structure of its modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from vitune.backbones import layouts
from vitune.backbones.structure import (
    find,
    find_norm,
    joined,
    resolve,
    root_prefix,
    unwrapped,
    walk,
)
from vitune.backbones.tokens import TokenLayout, num_prefix_tokens, token_layout
from vitune.errors import BackboneError, nearest

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

ROLES = (
    "patch_embed",
    "norm1",
    "qkv",
    "q",
    "k",
    "v",
    "attn_out",
    "norm2",
    "fc1",
    "fc2",
    "reduction",
    "final_norm",
    "block",
    "head",
    "conv",
)
"""Every role a site can have, in the order of a forward pass."""

_PRE_NORM = ("norm1", "qkv", "q", "k", "v", "attn_out", "norm2", "fc1", "fc2")
_POST_NORM = ("qkv", "q", "k", "v", "attn_out", "norm1", "fc1", "fc2", "norm2")


@dataclass(frozen=True)
class Site:
    """One module a method may replace or wrap.

    Args:
        name: qualified name inside the model that was given (`model.get_submodule(name)`).
        role: one of ROLES. A gated MLP with two linears has two sites of role `fc1`.
        block: index over depth, through all stages of a hierarchical model; None outside blocks.
        num_parts: equal parts in the order of out_features: 3 for a fused q, k, v; 2 for a fused
            gate and up projection; 1 otherwise.
        windowed: the block attends in windows, as Swin does; False outside blocks.
        separate_bias: the attention keeps the biases of this layer as its own parameters
            (`q_bias`, `v_bias`), so the layer has none and must be given none on merging.
        direct_weight: the owner reads this layer's `weight` instead of calling the layer, so that
            a replaced `forward` would be passed over; `torch.nn.MultiheadAttention` is such.
    """

    name: str
    role: str
    block: int | None
    num_parts: int = 1
    windowed: bool = False
    separate_bias: bool = False
    direct_weight: bool = False


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """Every site of `model` in forward order; a block stands before its own parts.

    Convolutional networks give `conv` sites (stem, blocks and shortcuts) and the head; a ConvNeXt
    gives its linears and, with role `conv`, its depthwise and down-sampling convolutions.

    Raises:
        BackboneError: no transformer block, no ConvNeXt block and no convolutional network.
    """
    prefix = root_prefix(model)
    root = model.get_submodule(prefix)
    inner = list(_walked_sites(root))
    blocks = [site for site in inner if site.role == "block"]
    attends = any(site.role == "attn_out" for site in inner)
    if attends or (not blocks and not _mostly_convolutional(root)):
        inner = [site for site in inner if site.role != "conv"]
    if not blocks and not inner:
        raise BackboneError(_unrecognised(root))
    first, last = [], []
    if blocks:
        towers = _towers(blocks[0].name)
        first = _outer_site(root, "patch_embed", towers)
        last = _outer_site(root, "final_norm", towers)
    stem = {site.name for site in first}
    heads = [Site(name, "head", None) for name in _root_head_names(root)]
    found = [*first, *(site for site in inner if site.name not in stem), *last, *heads]
    return tuple(replace(site, name=joined(prefix, site.name)) for site in found)


def sites_with_roles(
    sites: Iterable[Site],
    roles: Iterable[str],
    *,
    blocks: Sequence[int] | None = None,
    needed_by: str,
) -> tuple[Site, ...]:
    """The sites of the asked roles, each once, in the order of `sites`.

    Args:
        sites: what `find_sites` returned.
        roles: roles that must all be there. A fused `qkv` answers for q, k and v, and separate
            q, k and v answer for `qkv`.
        blocks: indices to keep, negative ones from the end; None keeps all. Sites outside blocks
            are kept whatever `blocks` says.
        needed_by: who asks, for the error text.

    Raises:
        BackboneError: an unknown role, a role without a site, or a block index out of range.
    """
    sites = tuple(sites)
    found = {site.role for site in sites}
    wanted: set[str] = set()
    for role in roles:
        if role not in ROLES:
            raise BackboneError(
                f"role: got {role!r}, expected one of {', '.join(ROLES)}. {nearest(role, ROLES)}"
            )
        answers = _answers(role, found)
        if not answers:
            names = ", ".join(known for known in ROLES if known in found)
            raise BackboneError(
                f"role {role!r}: got a backbone without such a layer, expected one because "
                f"{needed_by} acts on it. Roles found here: {names}."
            )
        wanted |= answers
    kept = None if blocks is None else _kept_blocks(sites, blocks, needed_by)
    return tuple(
        site
        for site in sites
        if site.role in wanted and (kept is None or site.block is None or site.block in kept)
    )


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Qualified names of the classifier's linear layers; a distilled model has two."""
    prefix = root_prefix(model)
    names = _root_head_names(model.get_submodule(prefix))
    return tuple(joined(prefix, name) for name in names)


def head_name(model: nn.Module) -> str | None:
    """Qualified name of the classifier (of a distilled model, its class-token one), or None."""
    return next(iter(head_names(model)), None)


def _walked_sites(root: nn.Module) -> Iterator[Site]:
    """Sites of all blocks, and the reductions and convolutions between them."""
    index = 0
    for name, module in walk(root, stop=lambda child: _is_block(child)):
        original = unwrapped(module)
        if _is_block(module):
            yield from _block_sites(name, module, index)
            index += 1
        elif isinstance(original, nn.Linear) and name.split(".")[-1] == layouts.REDUCTION:
            yield Site(name, "reduction", None)
        elif isinstance(original, nn.Conv2d):
            yield Site(name, "conv", None)


def _is_block(module: nn.Module) -> bool:
    """Both MLP linears are there, and an attention output or a depthwise convolution."""
    if not _linears(module, "fc1") or not _linears(module, "fc2"):
        return False
    return bool(_linears(module, "attn_out")) or _depthwise(module) is not None


def _block_sites(name: str, block: nn.Module, index: int) -> Iterator[Site]:
    """The block itself, then its parts in forward order."""
    depthwise = None if _linears(block, "attn_out") else _depthwise(block)
    windowed = _is_windowed(block)
    yield Site(name, "block", index, windowed=windowed)
    if depthwise is not None:
        yield Site(joined(name, depthwise), "conv", index)
    for role in _POST_NORM if _is_post_norm(block) else _PRE_NORM:
        for part in _parts(block, role, depthwise is not None):
            yield replace(part, name=joined(name, part.name), block=index, windowed=windowed)


def _parts(block: nn.Module, role: str, convolutional: bool) -> list[Site]:
    """The sites of one role, named relative to the block."""
    if role in layouts.NORMS:
        paths = layouts.NORMS[role]
        if convolutional:
            paths = layouts.CONV_BLOCK_NORMS if role == "norm2" else ()
        name = find_norm(block, paths)
        return [] if name is None else [Site(name, role, None)]
    fused = find(block, layouts.FUSED_ATTENTION, nn.MultiheadAttention)
    if role == "qkv" and fused is not None:
        return [Site(fused, "qkv", None, num_parts=3, direct_weight=True)]
    return [
        Site(
            name,
            role,
            None,
            num_parts=_num_parts(block, name, role),
            separate_bias=role == "qkv" and _keeps_biases(block),
            direct_weight=_reads_weight(block, role) or (role == "attn_out" and fused is not None),
        )
        for name in _linears(block, role)
    ]


def _linears(block: nn.Module, role: str) -> list[str]:
    """Names of the linear layers of `role` relative to the block, empty when there are none."""
    for paths in layouts.LINEARS[role]:
        names = [find(block, [path], nn.Linear) for path in paths]
        if all(names):
            return [name for name in names if name is not None]
    return []


def _depthwise(block: nn.Module) -> str | None:
    name = find(block, layouts.DEPTHWISE, nn.Conv2d)
    if name is None:
        return None
    conv = unwrapped(block.get_submodule(name))
    assert isinstance(conv, nn.Conv2d)
    return name if conv.groups == conv.in_channels else None


def _num_parts(block: nn.Module, name: str, role: str) -> int:
    """How many equal linears one fused linear holds, read off the next layer's width."""
    layer = unwrapped(block.get_submodule(name))
    assert isinstance(layer, nn.Linear)
    if role == "qkv":
        return 3 if layer.out_features % 3 == 0 else 1
    if role == "fc1":
        second = unwrapped(block.get_submodule(_linears(block, "fc2")[0]))
        assert isinstance(second, nn.Linear)
        return 2 if layer.out_features == 2 * second.in_features else 1
    return 1


def _attention(block: nn.Module) -> nn.Module | None:
    found = [resolve(block, path) for path in layouts.ATTENTION]
    return next((unwrapped(hit[1]) for hit in reversed(found) if hit is not None), None)


def _is_windowed(block: nn.Module) -> bool:
    """Swin shifts windows, MaxViT partitions, SAM's local blocks have a window above zero."""
    original, attention = unwrapped(block), _attention(block)
    if getattr(original, "window_size", None):
        return True
    return any(
        hasattr(owner, attribute)
        for owner in (original, attention)
        for attribute in ("shift_size", "partition_size")
    )


def _is_post_norm(block: nn.Module) -> bool:
    """Normalising after attention: Swin v2's cosine attention, or `norm1` built after `attn`."""
    original = unwrapped(block)
    if getattr(_attention(block), "logit_scale", None) is not None:
        return True
    order = list(original._modules)
    return {"attn", "norm1"} <= set(order) and order.index("attn") < order.index("norm1")


def _keeps_biases(block: nn.Module) -> bool:
    return getattr(_attention(block), "q_bias", None) is not None


def _reads_weight(block: nn.Module, role: str) -> bool:
    """timm's q_bias attention reads `qkv.weight`; torchvision's Swin reads it and `proj.weight`."""
    attention = _attention(block)
    if role == "qkv" and getattr(attention, "q_bias", None) is not None:
        return not getattr(attention, "qkv_bias_separate", False)
    in_torchvision_swin = hasattr(attention, "shift_size") and hasattr(
        attention, "attention_dropout"
    )
    return role in ("qkv", "attn_out") and in_torchvision_swin


def _towers(block_name: str) -> list[str]:
    """Names of the modules around a block, outermost first; '' is the network."""
    parts = block_name.split(".")[:-1]
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def _outer_site(root: nn.Module, role: str, towers: list[str]) -> list[Site]:
    """The patch embedding or the final norm of the tower that holds the blocks."""
    for tower in towers:
        around = root.get_submodule(tower)
        if role == "patch_embed":
            name = find(around, layouts.PATCH_EMBED, (nn.Conv2d, nn.Conv3d, nn.Linear))
        else:
            name = find_norm(around, layouts.FINAL_NORM)
        if name is not None:
            return [Site(joined(tower, name), role, None)]
    return []


def _root_head_names(root: nn.Module) -> tuple[str, ...]:
    first = find(root, layouts.HEADS, nn.Linear)
    if first is None and callable(getattr(root, "get_classifier", None)):
        given = root.get_classifier()
        first = next(
            (
                name
                for name, module in root.named_modules()
                if module is given and isinstance(unwrapped(module), nn.Linear)
            ),
            None,
        )
    second = find(root, layouts.SECOND_HEADS, nn.Linear)
    return tuple(name for name in (first, second) if name is not None)


def _mostly_convolutional(root: nn.Module) -> bool:
    """Whether convolutions hold most of the weights outside the head."""
    heads = _root_head_names(root)
    in_head = sum(root.get_submodule(name).weight.numel() for name in heads)  # type: ignore[operator,union-attr]
    in_conv = sum(
        module.weight.numel() for module in root.modules() if isinstance(module, nn.Conv2d)
    )
    total = sum(parameter.numel() for parameter in root.parameters()) - in_head
    return in_conv > 0.5 * total


def _answers(role: str, found: set[str]) -> set[str]:
    """The roles present that answer a request for `role`."""
    if role in found:
        return {role}
    if role in ("q", "k", "v") and "qkv" in found:
        return {"qkv"}
    if role == "qkv" and {"q", "k", "v"} <= found:
        return {"q", "k", "v"}
    return set()


def _kept_blocks(sites: tuple[Site, ...], blocks: Sequence[int], needed_by: str) -> set[int]:
    num_blocks = len({site.block for site in sites if site.block is not None})
    for index in blocks:
        if not -num_blocks <= index < num_blocks:
            raise BackboneError(
                f"blocks of {needed_by}: got {index!r}, expected indices from {-num_blocks} to "
                f"{num_blocks - 1}. This backbone has {num_blocks} blocks."
            )
    return {index % num_blocks for index in blocks}


def _unrecognised(root: nn.Module) -> str:
    def listed(role: str) -> str:
        return ", ".join("+".join(paths) for paths in layouts.LINEARS[role])

    return (
        f"model: got {type(root).__name__} with no block that is recognised, expected blocks with "
        f"an attention output ({listed('attn_out')}) or a depthwise convolution "
        f"({', '.join(layouts.DEPTHWISE)}) and two MLP linears ({listed('fc1')}; {listed('fc2')}), "
        f"or a network that is mostly convolutions. Try a ViT, Swin, ConvNeXt or ResNet."
    )
