"""Small networks with random weights, one for each kind of architecture the methods must meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


class Attention(nn.Module):
    """Plain self-attention, written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(*parts)  # (b, h, n, d / h)
        return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp: Any = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        hidden = nn.functional.gelu(self.mlp.fc1(self.norm2(x)))
        return x + self.mlp.fc2(hidden)


class PlainStack(nn.Module):
    """A vision transformer from no library."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.patch_embed: Any = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 16, 16)
        self.patch_embed.grid_size = (2, 2)  # type: ignore[assignment]
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 5, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, 2) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed.proj(x).flatten(2).mT  # (b, n, d)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens)[:, 0])


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
    "plain_stack": PlainStack,
    **({"bundled": bundled} if bundled_names() else {}),
}


def build(name: str) -> nn.Module:
    """The network `name`, the same for each call, with no value left at a neutral 0 or 1."""
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
