"""Tiny backbones with random weights, one of every kind RLRR must adapt."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from peft import PeftModel, get_peft_model
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitune.methods import RLRRConfig

CLASSES = 5
NUM_PIXELS = 16


def timm_vit(**options: object) -> nn.Module:
    sizes = {"img_size": NUM_PIXELS, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return VisionTransformer(**{**sizes, "mlp_ratio": 2, "num_classes": CLASSES, **options})


def timm_swin() -> nn.Module:
    return SwinTransformer(
        img_size=NUM_PIXELS, patch_size=2, window_size=4, embed_dim=8, depths=(2, 1),
        num_heads=(1, 2), num_classes=CLASSES,
    )  # fmt: skip


def timm_swin_v2() -> nn.Module:
    return SwinTransformerV2(
        img_size=NUM_PIXELS, patch_size=2, window_size=4, embed_dim=8, depths=(1, 1),
        num_heads=(1, 2), num_classes=CLASSES,
    )  # fmt: skip


def timm_beit() -> nn.Module:
    return Beit(
        img_size=NUM_PIXELS, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES
    )


def timm_eva() -> nn.Module:
    return Eva(
        img_size=NUM_PIXELS, patch_size=8, embed_dim=16, depth=2, num_heads=2,
        num_classes=CLASSES, qkv_fused=True, use_rot_pos_emb=True,
    )  # fmt: skip


def timm_resnet() -> nn.Module:
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=CLASSES, channels=(4, 4, 8, 8))


def timm_resnext() -> nn.Module:
    return ResNet(
        Bottleneck, (1, 1, 1, 1), num_classes=CLASSES, channels=(4, 4, 8, 8), cardinality=2,
        base_width=32,
    )  # fmt: skip


def timm_convnext() -> nn.Module:
    return ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 16), num_classes=CLASSES, patch_size=1)


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer as TorchvisionViT

    return TorchvisionViT(
        image_size=NUM_PIXELS, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16,
        mlp_dim=32, num_classes=CLASSES,
    )  # fmt: skip


HF_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": NUM_PIXELS,
    "patch_size": 8,
}


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**HF_SIZES, num_labels=CLASSES))


def hf_swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=NUM_PIXELS, patch_size=2, window_size=4, embed_dim=8, depths=[1, 1],
        num_heads=[1, 2], num_labels=CLASSES,
    )  # fmt: skip
    return SwinForImageClassification(config)


def hf_dinov2() -> nn.Module:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    sizes = {key: value for key, value in HF_SIZES.items() if key != "intermediate_size"}
    return Dinov2ForImageClassification(Dinov2Config(**sizes, mlp_ratio=2, num_labels=CLASSES))


def hf_clip() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**HF_SIZES))


def hf_siglip() -> nn.Module:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(SiglipVisionConfig(**HF_SIZES))


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    made.__name__: made
    for made in (
        timm_vit, timm_swin, timm_swin_v2, timm_beit, timm_eva, timm_resnet, timm_resnext,
        timm_convnext, torchvision_vit, hf_vit, hf_swin, hf_dinov2, hf_clip, hf_siglip,
    )
}  # fmt: skip


def random_backbone(name: str = "timm_vit", **options: object) -> nn.Module:
    """A backbone in which no weight is zero by its initialisation."""
    model = BACKBONES[name](**options)
    shake(model.parameters())
    return model.eval()


def random_adapter(model: nn.Module, **options: object) -> PeftModel:
    """RLRR on `model`, every trained value moved off its start."""
    adapted = get_peft_model(model, RLRRConfig(**options))
    shake(parameter for parameter in adapted.parameters() if parameter.requires_grad)
    return adapted.eval()


def shake(parameters: object, strength: float = 0.05) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter += strength * torch.randn_like(parameter)


def images(num_images: int = 3) -> Tensor:
    return torch.randn(num_images, 3, NUM_PIXELS, NUM_PIXELS)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Logits, or the pooled features of a tower without a head."""
    with torch.no_grad():
        return plain(model(x))


def plain(result: object) -> Tensor:
    if isinstance(result, Tensor):
        return result
    logits = getattr(result, "logits", None)
    return result.pooler_output if logits is None else logits


def num_trained(model: nn.Module) -> int:
    """Trainable parameters outside the head."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "modules_to_save" not in name
    )


def strength(changed: Tensor, weight: Tensor) -> float:
    """‖W' − W‖ / ‖W‖."""
    return float((changed - weight).norm() / weight.norm())


def paper_strength(num_in: int) -> float:
    return 2 / math.sqrt(num_in)
