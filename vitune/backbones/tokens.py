"""The token layout of a vision transformer: prefix tokens, patch grid and pooling."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vitune.backbones.structure import find, is_norm, network, resolve, unwrapped
from vitune.errors import BackboneError

_SINGLE_TOKENS = ("cls_token", "class_token", "class_embedding", "dist_token", "distillation_token")
_TOKEN_GROUPS = ("reg_token", "register_tokens")
_EMBEDDINGS = frozenset({"patch_embed", "embeddings", "embeds", "conv_proj"})


@dataclass(frozen=True)
class TokenLayout:
    """The tokens that enter the first block: prefix tokens first, then patches line by line.

    Args:
        num_prefix: class, distillation and register tokens before the patches.
        grid: (height, width) in patches at the image size the model is built for; for a
            hierarchical model before its first merging; None if any size is accepted.
        pooling: what the head reads: "token" (the class token), "avg" (mean over patches), "map"
            (attention pooling), "token+avg" (both, concatenated), or timm's own word.
    """

    num_prefix: int
    grid: tuple[int, int] | None
    pooling: str


def token_layout(model: nn.Module) -> TokenLayout:
    """The token layout of a ViT or Swin of timm, transformers or torchvision.

    Raises:
        BackboneError: no patch embedding is recognised.
    """
    root = network(model)
    tower = next((part for part in root.modules() if _EMBEDDINGS & set(part._modules)), None)
    if tower is None:
        raise BackboneError(
            f"token layout: got {type(root).__name__}, expected a transformer with one of "
            f"{', '.join(sorted(_EMBEDDINGS))}. Methods that act on tokens need a ViT or a Swin."
        )
    num_prefix = _count_prefix(tower)
    return TokenLayout(num_prefix, _grid(tower), _pooling(root, tower, num_prefix))


def num_prefix_tokens(model: nn.Module) -> int:
    """The number of tokens before the patches.

    Raises:
        BackboneError: no patch embedding is recognised.
    """
    return token_layout(model).num_prefix


def _count_prefix(tower: nn.Module) -> int:
    declared = getattr(tower, "num_prefix_tokens", None)
    if isinstance(declared, int):
        return declared
    tokens: dict[str, nn.Parameter | None] = dict(tower._parameters)
    if "embeddings" in tower._modules:
        tokens.update(tower.get_submodule("embeddings")._parameters)
    single = sum(tokens.get(name) is not None for name in _SINGLE_TOKENS)
    groups = [tokens[name] for name in _TOKEN_GROUPS if tokens.get(name) is not None]
    return single + sum(group.shape[1] for group in groups if group is not None)


def _grid(tower: nn.Module) -> tuple[int, int] | None:
    """Patches down and across, from the patch embedding or from the configured sizes."""
    if "patch_embed" in tower._modules:
        return _pair(getattr(tower._modules["patch_embed"], "grid_size", None))
    if "embeds" in tower._modules:
        return _pair(getattr(tower._modules["embeds"], "pos_embed_grid_size", None))
    sizes = getattr(tower, "config", tower)
    image, patch = (_pair(getattr(sizes, name, None)) for name in ("image_size", "patch_size"))
    if image is None or patch is None:
        return None
    return image[0] // patch[0], image[1] // patch[1]


def _pooling(root: nn.Module, tower: nn.Module, num_prefix: int) -> str:
    owners = (getattr(tower, "head", None), tower)
    for owner in owners:
        pool = getattr(owner, "global_pool", None)
        pool = getattr(pool, "pool_type", pool)
        if isinstance(pool, str):
            return pool
    if "vision_model" in root._modules and "classifier" in root._modules:
        return "avg"
    if getattr(tower._modules.get("head"), "probe", None) is not None:
        return "map"
    pooled_norm = resolve(tower, "pooler.layernorm")
    if pooled_norm is not None and is_norm(pooled_norm[1]):
        return "avg"
    if num_prefix and _head_reads_twice(root, tower):
        return "token+avg"
    return "token" if num_prefix else "avg"


def _head_reads_twice(root: nn.Module, tower: nn.Module) -> bool:
    """DINOv2's classifier is twice as wide as its tokens: class token and mean of the patches."""
    name = find(root, ("classifier",), nn.Linear)
    width = getattr(getattr(tower, "config", None), "hidden_size", None)
    if name is None or width is None:
        return False
    classifier = unwrapped(root.get_submodule(name))
    return getattr(classifier, "in_features", None) == 2 * width


def _pair(value: object) -> tuple[int, int] | None:
    """(height, width) from one number or two; None from anything else."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2:
        return int(value[0]), int(value[1])
    return None
