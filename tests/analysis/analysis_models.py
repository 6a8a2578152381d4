"""Tiny networks for the tests of the analysis."""

from __future__ import annotations

import timm
import torch
from torch import nn

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
LINEARS = r".*blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"


def new_vit(seed: int = 0, **changes: object) -> nn.Module:
    torch.manual_seed(seed)
    options = {**TINY, "num_classes": 5, **changes}
    return timm.models.vision_transformer.VisionTransformer(**options)


def perturb_trainable(model: nn.Module, size: float = 0.05) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
