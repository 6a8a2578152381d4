"""Transformers models with random weights, built from tiny configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from timm_zoo import NUM_CLASSES, images, roughened
from torch import Tensor, nn

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 16,
}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 4,
}
TWO = {"hidden_sizes": [32, 64], "depths": [1, 1]}
FOUR = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}

Build = Callable[[], nn.Module]


def classifier(family: str, **options: Any) -> Build:
    """The image classifier of a family."""
    return made(f"{family}ForImageClassification", f"{family}Config", **options)


def made(model: str, config: str, **options: Any) -> Build:
    """A model class with a configuration."""
    return lambda: getattr(transformers, model)(
        getattr(transformers, config)(**{"num_labels": NUM_CLASSES, **options})
    )


MODELS: dict[str, tuple[int, Build]] = {
    "ViT": (32, classifier("ViT", **VIT)),
    "DeiT": (32, classifier("DeiT", **VIT)),
    "DeiT with teacher": (32, made("DeiTForImageClassificationWithTeacher", "DeiTConfig", **VIT)),
    "BEiT": (32, classifier("Beit", **VIT, use_relative_position_bias=True)),
    "Data2Vec": (32, classifier("Data2VecVision", **VIT)),
    "DINOv2": (32, classifier("Dinov2", **VIT)),
    "DINOv2 with registers": (32, classifier("Dinov2WithRegisters", **VIT)),
    "DINOv2 SwiGLU": (32, classifier("Dinov2", **VIT, use_swiglu_ffn=True)),
    "ViT-MSN": (32, classifier("ViTMSN", **VIT)),
    "I-JEPA": (32, classifier("IJepa", **VIT)),
    "CLIP": (32, classifier("CLIP", vision_config=VIT, text_config=TEXT)),
    "SigLIP": (32, classifier("Siglip", vision_config=VIT, text_config=TEXT)),
    "Swin": (32, classifier("Swin", **SWIN)),
    "Swin v2": (32, classifier("Swinv2", **SWIN)),
    "Hiera": (
        64,
        classifier(
            "Hiera",
            image_size=[64, 64],
            embed_dim=16,
            depths=[1, 1, 1],
            num_heads=[1, 2, 4],
            query_stride=[2, 2],
            masked_unit_size=[4, 4],
            num_query_pool=2,
            patch_stride=[4, 4],
        ),
    ),
    "ConvNeXt": (32, classifier("ConvNext", **TWO, num_stages=2)),
    "ConvNeXt v2": (32, classifier("ConvNextV2", **TWO, num_stages=2)),
    "BiT": (32, classifier("Bit", **TWO, embedding_size=32, num_groups=8)),
    "ResNet": (32, classifier("ResNet", **TWO, embedding_size=16)),
    "RegNet": (32, classifier("RegNet", **TWO, embedding_size=16, groups_width=8)),
    "MobileNet v1": (64, classifier("MobileNetV1", depth_multiplier=0.25)),
    "MobileNet v2": (64, classifier("MobileNetV2", depth_multiplier=0.35)),
    "MobileViT": (
        64,
        classifier(
            "MobileViT",
            image_size=64,
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 12, 16, 20, 24, 32],
            num_attention_heads=2,
        ),
    ),
    "MobileViT v2": (64, classifier("MobileViTV2", image_size=64, width_multiplier=0.25)),
    "PVT": (
        64,
        classifier("Pvt", image_size=64, **FOUR, num_attention_heads=[1, 2, 3, 4]),
    ),
    "PVT v2": (
        64,
        classifier("PvtV2", image_size=64, **FOUR, num_attention_heads=[1, 2, 3, 4]),
    ),
    "SegFormer": (64, classifier("Segformer", **FOUR, num_attention_heads=[1, 2, 3, 4])),
    "LeViT": (
        64,
        classifier(
            "Levit",
            image_size=64,
            hidden_sizes=[16, 32, 48],
            num_attention_heads=[1, 2, 3],
            depths=[1, 1, 1],
            key_dim=[8, 8, 8],
        ),
    ),
    "PoolFormer": (64, classifier("PoolFormer", **FOUR)),
    "SwiftFormer": (
        64,
        classifier("SwiftFormer", image_size=64, depths=[1] * 4, embed_dims=[16, 24, 32, 40]),
    ),
}
"""By name: the image size in pixels and how the model is built."""


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The model `name` in float64 without neutral values, and two images for it."""
    size, make = MODELS[name]
    torch.manual_seed(1)
    return roughened(make()), images(size)
