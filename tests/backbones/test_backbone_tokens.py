"""Prefix tokens, grid and pooling agree with what the networks really do."""

from __future__ import annotations

import pytest
import torch
from backbone_zoo import MODELS, hf_model, image, small, timm_model
from torch import nn

from vitune.backbones import TokenLayout, find_sites, num_prefix_tokens, token_layout
from vitune.errors import BackboneError

LAYOUTS = {
    "timm vit": TokenLayout(1, (4, 4), "token"),
    "timm vit registers": TokenLayout(4, (4, 4), "avg"),
    "timm vit attention pooling": TokenLayout(1, (2, 2), "map"),
    "timm deit distilled": TokenLayout(2, (2, 2), "token"),
    "timm beit": TokenLayout(1, (2, 2), "avg"),
    "timm siglip": TokenLayout(0, (2, 2), "map"),
    "timm eva02 split": TokenLayout(1, (4, 4), "avg"),
    "timm dinov3": TokenLayout(5, (2, 2), "avg"),
    "timm swin": TokenLayout(0, (8, 8), "avg"),
    "hf vit": TokenLayout(1, (4, 4), "token"),
    "hf deit": TokenLayout(2, (4, 4), "token"),
    "hf beit": TokenLayout(1, (4, 4), "avg"),
    "hf dinov2": TokenLayout(1, (4, 4), "token+avg"),
    "hf dinov2 registers": TokenLayout(5, (4, 4), "token+avg"),
    "hf dinov3": TokenLayout(5, (4, 4), "token"),
    "hf mae": TokenLayout(1, (4, 4), "token"),
    "hf clip vision": TokenLayout(1, (4, 4), "token"),
    "hf clip classifier": TokenLayout(1, (4, 4), "avg"),
    "hf siglip vision": TokenLayout(0, (4, 4), "map"),
    "hf swin": TokenLayout(0, (8, 8), "avg"),
    "torchvision vit": TokenLayout(1, (4, 4), "token"),
}


@pytest.mark.parametrize("family", LAYOUTS)
def test_layout(family: str) -> None:
    model = MODELS[family]().eval()
    layout = token_layout(model)
    assert layout == LAYOUTS[family]
    assert num_prefix_tokens(model) == layout.num_prefix


@pytest.mark.parametrize("family", [name for name in LAYOUTS if "swin" not in name])
def test_prefix_and_grid_add_up_to_the_tokens_of_a_block(family: str) -> None:
    model = MODELS[family]().eval()
    layout = token_layout(model)
    seen: list[int] = []
    norm1 = next(site for site in find_sites(model) if site.role == "norm1")
    model.get_submodule(norm1.name).register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape[1])
    )
    with torch.no_grad():
        model(image())
    assert layout.grid is not None
    assert seen == [layout.num_prefix + layout.grid[0] * layout.grid[1]]


def test_grid_of_other_shapes() -> None:
    assert token_layout(small("vit_base_patch16_224", img_size=(48, 32))).grid == (3, 2)
    assert token_layout(hf_model("ViTModel", "ViTConfig", image_size=(32, 16))).grid == (4, 2)
    naflex = timm_model("naflexvit_base_patch16_gap", embed_dim=32, num_heads=2, depth=1)
    assert token_layout(naflex).num_prefix == naflex.num_prefix_tokens
    sizeless = MODELS["torchvision vit"]()
    sizeless.image_size = None
    assert token_layout(sizeless).grid is None


def test_layout_inside_peft() -> None:
    import peft

    model = small("vit_base_patch16_reg4_gap_256")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["qkv"]))
    assert token_layout(wrapped) == TokenLayout(4, (2, 2), "avg")


def test_layout_needs_a_patch_embedding() -> None:
    with pytest.raises(BackboneError, match=r"token layout: got Sequential, expected a transf"):
        token_layout(nn.Sequential(nn.Conv2d(3, 4, 3)))
