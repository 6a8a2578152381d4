"""The default backbone: a good one from the hub or its cache, else the bundled one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

BUNDLED = "vitune/vit_micro_patch4_32"

KNOWN_GOOD = (
    "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "vit_base_patch16_224.augreg_in21k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "deit3_small_patch16_224.fb_in22k_ft_in1k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
)
"""timm names of networks for 224-pixel images, most accurate features first."""

SMALLEST = KNOWN_GOOD[-1]
"""What is downloaded for a machine without a GPU, where a ViT-B would take hours."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
PATIENCE_S = 2.0
"""How long the hub has to answer each of two tries."""

OWN_IMAGES = "demo:"
"""Prefix of the images that vitune draws; the bundled backbone's page of results is about these."""


def preferred_backbone(
    names: Sequence[str] = KNOWN_GOOD,
    cache: str | Path | None = None,
    *,
    data: str = "",
    device: str = "auto",
) -> str:
    """The first of `names` in the hub's cache, else one that the hub offers, else the bundled one.

    With HF_HUB_OFFLINE=1 no server is contacted. Images that vitune draws itself always get the
    bundled backbone.

    Args:
        cache: folder of the hub's cache; None is the hub library's own.
        data: source of the images, as --data takes it.
        device: where training will run, as --device takes it.
    """
    if data.startswith(OWN_IMAGES):
        return BUNDLED
    cached = next((name for name in names if is_cached(name, cache)), None)
    if cached is not None:
        return cached
    download = names[0] if _is_fast(device) else SMALLEST
    return download if is_offered(download) else BUNDLED


def _is_fast(device: str) -> bool:
    """Whether training on `device`, as --device takes it, uses a GPU."""
    on_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return device == "cuda" or (device == "auto" and on_gpu)


def is_offered(name: str) -> bool:
    """Whether the hub answers and has timm's weights called `name`."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        url = hf_hub_url(f"timm/{name}", WEIGHT_FILES[0])
        found = get_hf_file_metadata(url, timeout=PATIENCE_S)
    except Exception:  # no network or a refusal: the bundled one needs no answer
        return False
    return found.commit_hash is not None  # the page of a network that wants a login has none


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
        source = "in the hub's cache" if is_cached(name) else "on the hub, downloaded once"
        return f"backbone {name}, found {source}; --backbone {BUNDLED} is the small one."
    return ""
