"""The default backbone: a good one from the cache, else the bundled one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

BUNDLED = "vitune/vit_micro_patch4_32"

KNOWN_GOOD = (
    "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "vit_base_patch16_224.augreg_in21k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "deit3_small_patch16_224.fb_in22k_ft_in1k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
)
"""timm names of networks for 224-pixel images, most accurate features first."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def preferred_backbone(names: Sequence[str] = KNOWN_GOOD, cache: str | Path | None = None) -> str:
    """The first of `names` whose weights are in the hub's cache, else the bundled backbone.

    No network is used, so the result is the same online and offline.

    Args:
        cache: folder of the hub's cache; None is the hub library's own.
    """
    return next((name for name in names if is_cached(name, cache)), BUNDLED)


def is_cached(name: str, cache: str | Path | None = None) -> bool:
    """Whether timm's weights called `name` are complete in the hub's cache."""
    from huggingface_hub import constants, try_to_load_from_cache

    folder = Path(cache or constants.HF_HUB_CACHE)
    if not folder.is_dir():
        return False
    for file in WEIGHT_FILES:
        found = try_to_load_from_cache(f"timm/{name}", file, cache_dir=folder)
        if isinstance(found, str) and os.path.getsize(found) > 0:
            return True
    return False


def notice_of(name: str, *, was_named: bool) -> str:
    """A notice about a backbone before any figures, or empty.

    Args:
        was_named: whether the user chose it.
    """
    if name.partition("@")[0] == BUNDLED and "@" not in name:
        return (
            f"{BUNDLED} is a demonstration network of 1.2 M parameters for 32-pixel images. For "
            f"real use choose --backbone {KNOWN_GOOD[0]} (downloaded once), hf:ORG/NAME, or "
            "ARCHITECTURE@FILE with weights you have."
        )
    if not was_named:
        return f"backbone {name}, found in the hub's cache; --backbone {BUNDLED} is the small one."
    return ""
