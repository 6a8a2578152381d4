"""Tiny randomly initialised networks of every family, and weights in Google's layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

SMALL = {"embed_dim": 32, "num_heads": 2, "depth": 2, "num_classes": 3}
HF = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
HF_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 50000,
}
STAGES = {"depths": (1, 1), "num_heads": (2, 4), "embed_dim": 16, "num_classes": 3}


def timm_model(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, **options)


def small(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, **{**SMALL, "img_size": 32, **options})


def hf_model(model: str, config: str, **options: Any) -> nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**{**HF, **options}))


def hf_dual(model: str, config: str, vision: dict[str, Any] | None = None) -> nn.Module:
    import transformers

    made = getattr(transformers, config)(
        vision_config={**HF, **(vision or {})}, text_config=HF_TEXT
    )
    return getattr(transformers, model)(made)


def hf_staged(model: str, config: str, **options: Any) -> nn.Module:
    import transformers

    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1]}
    sizes |= {"num_heads": [1, 2], "window_size": 4}
    return getattr(transformers, model)(getattr(transformers, config)(**{**sizes, **options}))


def hf_convnext() -> nn.Module:
    import transformers

    config = transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    return transformers.ConvNextForImageClassification(config)


def torchvision_vit() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=3)


def torchvision_swin(version: int) -> nn.Module:
    from torchvision.models import swin_transformer as swin

    options: dict[str, Any] = {}
    if version == 2:
        options["block"] = swin.SwinTransformerBlockV2
        options["downsample_layer"] = swin.PatchMergingV2
    return swin.SwinTransformer([4, 4], 16, [1, 1], [1, 2], [4, 4], num_classes=3, **options)


def torchvision_convnext() -> nn.Module:
    from torchvision.models import convnext

    settings = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)]
    return convnext.ConvNeXt(settings, num_classes=3)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm vit": lambda: small("vit_base_patch8_224"),
    "timm vit registers": lambda: small("vit_base_patch16_reg4_gap_256", patch_size=8),
    "timm vit rms norm": lambda: timm_model("test_vit4", img_size=32, depth=2),
    "timm vit attention pooling": lambda: timm_model("test_vit3", img_size=32, depth=2),
    "timm deit distilled": lambda: small("deit_base_distilled_patch16_224"),
    "timm deit3": lambda: small("deit3_base_patch16_224"),
    "timm beit": lambda: small("beit_base_patch16_224"),
    "timm beit bias apart": lambda: beit_with_bias_apart(),
    "timm dinov2": lambda: small("vit_base_patch14_dinov2", patch_size=8),
    "timm dinov2 swiglu": lambda: small("vit_giant_patch14_dinov2", mlp_ratio=4, patch_size=8),
    "timm clip": lambda: small("vit_base_patch16_clip_224"),
    "timm siglip": lambda: small("vit_base_patch16_siglip_224"),
    "timm eva": lambda: small("eva_giant_patch14_224", patch_size=8),
    "timm eva02 fused": lambda: small("eva02_tiny_patch14_224", patch_size=8),
    "timm eva02 split": lambda: small("eva02_base_patch14_448", patch_size=8),
    "timm dinov3": lambda: small("vit_small_patch16_dinov3"),
    "timm relative": lambda: small("vit_relpos_base_patch16_224"),
    "timm mae": lambda: small("vit_base_patch16_224.mae"),
    "timm post norm": lambda: small("vit_relpos_small_patch16_224", block_fn=res_post_block()),
    "timm swin": lambda: timm_model("swin_tiny_patch4_window7_224", img_size=32, **STAGES),
    "timm swinv2": lambda: timm_model("swinv2_tiny_window8_256", img_size=32, **STAGES),
    "timm convnext": lambda: timm_model("test_convnext", num_classes=3),
    "timm resnet": lambda: timm_model("test_resnet", num_classes=3),
    "hf vit": lambda: hf_model("ViTForImageClassification", "ViTConfig"),
    "hf deit": lambda: hf_model("DeiTForImageClassification", "DeiTConfig"),
    "hf deit teacher": lambda: hf_model("DeiTForImageClassificationWithTeacher", "DeiTConfig"),
    "hf beit": lambda: hf_model(
        "BeitForImageClassification", "BeitConfig", use_relative_position_bias=True
    ),
    "hf dinov2": lambda: hf_model("Dinov2ForImageClassification", "Dinov2Config"),
    "hf dinov2 swiglu": lambda: hf_model("Dinov2Model", "Dinov2Config", use_swiglu_ffn=True),
    "hf dinov2 registers": lambda: hf_model(
        "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig"
    ),
    "hf dinov3": lambda: hf_model("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=4),
    "hf mae": lambda: hf_model("ViTMAEModel", "ViTMAEConfig", mask_ratio=0.0),
    "hf clip vision": lambda: hf_model("CLIPVisionModel", "CLIPVisionConfig"),
    "hf clip classifier": lambda: hf_dual("CLIPForImageClassification", "CLIPConfig"),
    "hf siglip vision": lambda: hf_model("SiglipVisionModel", "SiglipVisionConfig"),
    "hf swin": lambda: hf_staged("SwinForImageClassification", "SwinConfig"),
    "hf swinv2": lambda: hf_staged("Swinv2ForImageClassification", "Swinv2Config"),
    "hf convnext": hf_convnext,
    "torchvision vit": torchvision_vit,
    "torchvision swin": lambda: torchvision_swin(1),
    "torchvision swinv2": lambda: torchvision_swin(2),
    "torchvision convnext": torchvision_convnext,
}


def beit_with_bias_apart() -> nn.Module:
    model = small("beit_base_patch16_224")
    for block in model.blocks:
        block.attn.qkv_bias_separate = True
    return model


def res_post_block() -> Any:
    from timm.models.vision_transformer_relpos import ResPostRelPosBlock

    return ResPostRelPosBlock


def image() -> torch.Tensor:
    return torch.randn(1, 3, 32, 32)


def google_arrays(model: nn.Module) -> dict[str, Any]:
    """The weights of a timm ViT in the layout of Google's `.npz` files."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    heads = model.blocks[0].attn.num_heads
    width = model.embed_dim
    arrays = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for index in range(len(model.blocks)):
        old, new = f"blocks.{index}.", f"Transformer/encoderblock_{index}/"
        attention = f"{new}MultiHeadDotProductAttention_1/"
        for part, name in enumerate(("query", "key", "value")):
            span = slice(part * width, (part + 1) * width)
            kernel, bias = state[f"{old}attn.qkv.weight"][span], state[f"{old}attn.qkv.bias"][span]
            arrays[f"{attention}{name}/kernel"] = kernel.T.reshape(width, heads, -1)
            arrays[f"{attention}{name}/bias"] = bias.reshape(heads, -1)
        out = state[f"{old}attn.proj.weight"]
        arrays[f"{attention}out/kernel"] = out.T.reshape(heads, -1, width)
        arrays[f"{attention}out/bias"] = state[f"{old}attn.proj.bias"]
        for norm, layer in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{new}{layer}/scale"] = state[f"{old}{norm}.weight"]
            arrays[f"{new}{layer}/bias"] = state[f"{old}{norm}.bias"]
        for linear, layer in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            arrays[f"{new}MlpBlock_3/{layer}/kernel"] = state[f"{old}mlp.{linear}.weight"].T
            arrays[f"{new}MlpBlock_3/{layer}/bias"] = state[f"{old}mlp.{linear}.bias"]
    return arrays
