"""What comes after the blocks of a network: heads that are not plain classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from torch import nn

from vitune.backbones.sites import Site

HEAD_LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)


def modules_beyond_blocks(model: nn.Module, known: Sequence[Site]) -> list[str]:
    """The outermost modules with weights outside the tower of the blocks, or built after it.

    A segmentation or detection head, a second tower, a pooling with weights; not the patch
    embedding. Empty for a bare feature extractor, which transformers calls `...Model`.
    """
    if hasattr(model, "base_model_prefix") and type(model).__name__.endswith("Model"):
        return []
    tower = [site.name for site in known if site.role in ("block", "conv", "patch_embed")]
    steps = zip(*(name.split(".") for name in tower), strict=False)
    root = [same[0] for same in takewhile(lambda step: len(set(step)) == 1, steps)]
    order = [name for name, _ in model.named_modules()]
    last = max((order.index(name) for name in tower), default=0)
    inside = tuple(f"{name}." for name in tower)
    sites = {site.name for site in known}
    found: dict[str, None] = {}
    for place, (name, module) in enumerate(model.named_modules()):
        is_head_layer = isinstance(module, HEAD_LAYERS) and name not in sites
        is_beyond = place > last or name.split(".")[: len(root)] != root
        if is_head_layer and is_beyond and not name.startswith(inside):
            found[_outermost(name, tower)] = None
    return list(found)


def _outermost(name: str, tower: Sequence[str]) -> str:
    """The largest module around `name` that holds none of `tower`."""
    parts = name.split(".")
    around = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return next(
        outer for outer in around if not any(part.startswith(f"{outer}.") for part in tower)
    )
