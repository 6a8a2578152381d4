"""Small networks with random weights, one for each kind of architecture the methods must meet."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitune.backbones import bundled_names, load_backbone, logits_of

NUM_CLASSES = 5


def vit(**options: object) -> nn.Module:
    settings = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2,
        "num_classes": NUM_CLASSES,
    }
    return VisionTransformer(**{**settings, **options})


def swin() -> nn.Module:
    return SwinTransformer(
        img_size=32,
        patch_size=4,
        embed_dim=16,
        depths=(2, 1),
        num_heads=(2, 2),
        window_size=4,
        mlp_ratio=2,
        num_classes=NUM_CLASSES,
    )


def transformers_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
            num_labels=NUM_CLASSES,
        )
    )


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer as TorchvisionViT

    return TorchvisionViT(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
        num_classes=NUM_CLASSES,
    )


def bundled() -> nn.Module:
    return load_backbone(bundled_names()[0], num_classes=NUM_CLASSES).model


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "vit_registers_no_class_token": lambda: vit(
        class_token=False, reg_tokens=2, global_pool="avg", qkv_bias=False
    ),
    "vit_layer_scale": lambda: vit(init_values=0.1, reg_tokens=1),
    "vit_oblong": lambda: vit(img_size=(32, 48)),
    "swin": swin,
    "transformers_vit": transformers_vit,
    "torchvision_vit": torchvision_vit,
    **({"bundled": bundled} if bundled_names() else {}),
}


def build(name: str) -> nn.Module:
    """The network `name`, the same at each call, with no value left at a neutral 0 or 1."""
    torch.manual_seed(1)
    model = BUILDERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def images(name: str, num: int = 3) -> Tensor:
    """Input that the network `name` takes."""
    width = 48 if name == "vit_oblong" else 32
    generator = torch.Generator().manual_seed(2)
    return torch.randn(num, 3, 32, width, generator=generator)


def run(model: nn.Module, x: Tensor) -> Tensor:
    """Logits without gradients."""
    with torch.no_grad():
        logits: Tensor = logits_of(model(x))
    return logits
