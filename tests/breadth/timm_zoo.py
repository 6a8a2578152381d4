"""Ninety-odd timm models with random weights, nearly every family, as small as its code allows."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import timm
import torch
from torch import Tensor, nn

NUM_CLASSES = 3
SMALL = {"embed_dim": 48, "num_heads": 3, "depth": 2}
"""Sizes that a plain ViT takes."""

STAGES = {"depths": (2, 1), "num_heads": (2, 4), "embed_dim": 32, "img_size": 64}
"""Sizes that a Swin takes."""

FOUR = (1, 1, 1, 1)
WIDTHS = {"embed_dims": (16, 32, 48, 64), "num_heads": (1, 2, 3, 4)}

Build = Callable[[], nn.Module]


def named(name: str, **options: Any) -> Build:
    """A registered model with options of its own."""
    return lambda: timm.create_model(name, num_classes=NUM_CLASSES, **options)


def built(path: str, **options: Any) -> Build:
    """A class of `timm.models` where the registered model does not let its sizes be changed."""
    module, name = path.split(":")
    return lambda: getattr(import_module(f"timm.models.{module}"), name)(
        num_classes=NUM_CLASSES, **options
    )


def _metaformer(path: str, **names: Any) -> Build:
    """A MetaFormer whose mixers and norms are named classes of its module."""

    def build() -> nn.Module:
        home = import_module("timm.models.metaformer")
        parts = {key: [getattr(home, part) for part in value] for key, value in names.items()}
        return home.MetaFormer(
            depths=FOUR, dims=(32, 32, 64, 64), num_classes=NUM_CLASSES, use_mlp_head=False, **parts
        )

    return build


def _mlp_mixer(*, mlp_ratio: Any = (0.5, 4.0), **names: str) -> Build:
    def build() -> nn.Module:
        home = import_module("timm.models.mlp_mixer")
        parts = {key: getattr(home, value) for key, value in names.items()}
        sizes = {"num_blocks": 2, "embed_dim": 32, "mlp_ratio": mlp_ratio}
        return home.MlpMixer(img_size=32, num_classes=NUM_CLASSES, **sizes, **parts)

    return build


MODELS: dict[str, tuple[int, Build]] = {
    "beit_base_patch16_224": (32, named("beit_base_patch16_224", **SMALL, img_size=32)),
    "botnet26t_256": (64, named("botnet26t_256", img_size=64)),
    "lambda_resnet26t": (64, named("lambda_resnet26t")),
    "test_byobnet": (64, named("test_byobnet")),
    "repvgg_a0": (32, named("repvgg_a0")),
    "cait_xxs24_224": (32, named("cait_xxs24_224", depth=2, img_size=32)),
    "coat_tiny": (64, named("coat_tiny", img_size=64)),
    "coat_lite_tiny": (64, named("coat_lite_tiny", img_size=64)),
    "convit_tiny": (32, named("convit_tiny", img_size=32, depth=2, local_up_to_layer=1)),
    "convmixer": (32, built("convmixer:ConvMixer", dim=32, depth=2)),
    "test_convnext": (64, named("test_convnext")),
    "test_convnext3": (64, named("test_convnext3")),
    "cpubone_nano": (64, named("cpubone_nano")),
    "crossvit_tiny_240": (
        48,
        built(
            "crossvit:CrossVit",
            img_size=48,
            img_scale=(1.0, 32 / 48),
            patch_size=(12, 16),
            embed_dim=(24, 48),
            depth=((1, 2, 0), (1, 2, 0)),
            num_heads=(3, 3),
            mlp_ratio=(2, 2, 1),
        ),
    ),
    "cs3darknet_s": (64, named("cs3darknet_s")),
    "cspnext_tiny": (64, named("cspnext_tiny")),
    "davit_tiny": (
        64,
        named(
            "davit_tiny",
            depths=FOUR,
            embed_dims=(24, 48, 72, 96),
            num_heads=(2, 4, 6, 8),
            window_size=4,
        ),
    ),
    "deit_tiny_distilled_patch16_224": (
        32,
        named("deit_tiny_distilled_patch16_224", **SMALL, img_size=32),
    ),
    "deit3_small_patch16_224": (32, named("deit3_small_patch16_224", **SMALL, img_size=32)),
    "densenet121": (64, named("densenet121", block_config=(2, 2))),
    "dla46_c": (64, named("dla46_c")),
    "dpn48b": (64, named("dpn48b")),
    "edgenext_xx_small": (64, named("edgenext_xx_small")),
    "efficientformer_l1": (224, named("efficientformer_l1")),
    "efficientformerv2_s0": (224, named("efficientformerv2_s0")),
    "test_efficientnet": (64, named("test_efficientnet")),
    "test_efficientnet_evos": (64, named("test_efficientnet_evos")),
    "tf_efficientnet_b0": (64, named("tf_efficientnet_b0")),
    "mixnet_s": (64, named("mixnet_s")),
    "efficientvim_m1": (128, named("efficientvim_m1")),
    "efficientvit_b0": (64, named("efficientvit_b0")),
    "efficientvit_m0": (224, named("efficientvit_m0")),
    "eva02_tiny_patch14_224": (28, named("eva02_tiny_patch14_224", **SMALL, img_size=28)),
    "eva02_base_patch14_448": (28, named("eva02_base_patch14_448", **SMALL, img_size=28)),
    "eva_giant_patch14_224": (28, named("eva_giant_patch14_224", **SMALL, img_size=28)),
    "vit_small_patch16_dinov3": (32, named("vit_small_patch16_dinov3", **SMALL, img_size=32)),
    "fasternet_t0": (64, named("fasternet_t0")),
    "fastvit_t8": (64, named("fastvit_t8")),
    "focalnet_tiny_srf": (64, built("focalnet:FocalNet", depths=FOUR, embed_dim=16)),
    "gcvit_xxtiny": (
        64,
        built(
            "gcvit:GlobalContextVit",
            img_size=64,
            window_size=(2, 2, 2, 2),
            embed_dim=16,
            depths=(2, 2, 2, 2),
            num_heads=(1, 2, 4, 8),
        ),
    ),
    "gernet_s": (64, named("gernet_s")),
    "ghostnet_050": (64, named("ghostnet_050")),
    "hardcorenas_a": (64, named("hardcorenas_a")),
    "hgnetv2_b0": (64, named("hgnetv2_b0")),
    "hiera_tiny_224": (64, named("hiera_tiny_224", img_size=64, embed_dim=24, stages=(1, 1, 2, 1))),
    "hieradet_small": (
        64,
        named("hieradet_small", embed_dim=24, stages=FOUR, window_spec=(4, 4, 2, 2)),
    ),
    "hrnet_w18_small": (64, named("hrnet_w18_small")),
    "iformer_t": (64, named("iformer_t")),
    "inception_next_atto": (64, named("inception_next_atto")),
    "inception_v3": (96, named("inception_v3")),
    "lcnet_035": (64, named("lcnet_035")),
    "levit_128s": (64, named("levit_128s", img_size=64)),
    "lowformer_b0": (64, named("lowformer_b0")),
    "test_mambaout": (64, named("test_mambaout")),
    "test_maxvit": (64, named("test_maxvit", img_size=64)),
    "maxvit_tiny_tf_224": (
        64,
        named("maxvit_tiny_tf_224", img_size=64, depths=(1, 1), embed_dim=(64, 64)),
    ),
    "maxvit_rmlp_pico_rw_256": (
        64,
        named("maxvit_rmlp_pico_rw_256", img_size=64, depths=(1, 1), embed_dim=(64, 64)),
    ),
    "test_coatnet": (64, named("test_coatnet", img_size=64)),
    "poolformer": (
        64,
        _metaformer("pool", token_mixers=["Pooling"] * 4, norm_layers=["GroupNorm1"] * 4),
    ),
    "caformer": (
        64,
        _metaformer(
            "ca",
            token_mixers=["SepConv", "SepConv", "Attention", "Attention"],
            norm_layers=["LayerNorm2dNoBias"] * 2 + ["LayerNormNoBias"] * 2,
        ),
    ),
    "mlp_mixer": (32, _mlp_mixer()),
    "gmlp": (
        32,
        _mlp_mixer(block_layer="SpatialGatingBlock", mlp_layer="GatedMlp", mlp_ratio=4),
    ),
    "mobilenetv3_small_050": (64, named("mobilenetv3_small_050")),
    "mobilevit_xxs": (64, named("mobilevit_xxs")),
    "mobilevitv2_050": (64, named("mobilevitv2_050")),
    "mvitv2_tiny": (64, lambda: _mvit()),
    "naflexvit_base_patch16_gap": (64, named("naflexvit_base_patch16_gap", **SMALL)),
    "nest_tiny": (
        64,
        built(
            "nest:Nest",
            img_size=64,
            embed_dims=(16, 32),
            num_heads=(1, 2),
            depths=(2, 2),
            num_levels=2,
        ),
    ),
    "nextvit_small": (64, named("nextvit_small", depths=(1, 1, 5, 1))),
    "test_nfnet": (64, named("test_nfnet")),
    "eca_nfnet_l0": (32, named("eca_nfnet_l0")),
    "pit_ti_224": (64, named("pit_ti_224", img_size=64, depth=FOUR[:3])),
    "pvt_v2_b0": (64, named("pvt_v2_b0", depths=FOUR)),
    "rdnet_tiny": (64, named("rdnet_tiny")),
    "regnety_002": (64, named("regnety_002")),
    "repvit_m0_9": (64, named("repvit_m0_9")),
    "test_resnet": (64, named("test_resnet")),
    "resnest14d": (64, named("resnest14d")),
    "resnetv2_bit": (64, lambda: _bit()),
    "rexnet_100": (64, named("rexnet_100")),
    "legacy_seresnet18": (64, named("legacy_seresnet18")),
    "sequencer2d_s": (64, named("sequencer2d_s", layers=FOUR, img_size=64)),
    "shvit_s1": (128, named("shvit_s1")),
    "skresnet18": (64, named("skresnet18")),
    "starnet_s050": (64, named("starnet_s050")),
    "swiftformer_xs": (224, named("swiftformer_xs")),
    "swin_tiny": (64, named("swin_tiny_patch4_window7_224", **STAGES, window_size=4)),
    "swinv2_tiny": (64, named("swinv2_tiny_window8_256", **STAGES, window_size=4)),
    "swinv2_cr_tiny_224": (64, named("swinv2_cr_tiny_224", **STAGES, window_size=2)),
    "tiny_vit_5m_224": (
        64,
        named(
            "tiny_vit_5m_224",
            depths=FOUR,
            embed_dims=(16, 32, 64, 64),
            num_heads=(1, 2, 4, 4),
            window_sizes=(2, 2, 2, 2),
        ),
    ),
    "tnt_s_patch16_224": (32, named("tnt_s_patch16_224", depth=2, img_size=32)),
    "twins_svt_small": (
        64,
        named("twins_svt_small", img_size=64, depths=(1, 2, 1, 1), **WIDTHS, wss=(2, 2, 2, 2)),
    ),
    "twins_pcpvt_small": (64, named("twins_pcpvt_small", img_size=64, depths=FOUR, **WIDTHS)),
    "visformer_tiny": (
        64,
        named("visformer_tiny", img_size=64, embed_dim=32, depth=FOUR[:3], num_heads=2),
    ),
    "test_vit": (32, named("test_vit", img_size=32)),
    "test_vit3": (32, named("test_vit3", img_size=32)),
    "test_vit4": (32, named("test_vit4", img_size=32)),
    "vit_base_patch16_clip_224": (32, named("vit_base_patch16_clip_224", **SMALL, img_size=32)),
    "vit_base_patch14_reg4_dinov2": (
        28,
        named("vit_base_patch14_reg4_dinov2", **SMALL, img_size=28),
    ),
    "vit_base_patch16_siglip_224": (32, named("vit_base_patch16_siglip_224", **SMALL, img_size=32)),
    "vit_tiny_r_s16_p8_224": (64, named("vit_tiny_r_s16_p8_224", **SMALL, img_size=64)),
    "test_vit_relpos": (32, named("test_vit_relpos", img_size=32)),
    "samvit_base_patch16_224": (
        64,
        named(
            "samvit_base_patch16_224", **SMALL, img_size=64, global_attn_indexes=(1,), window_size=2
        ),
    ),
    "vitamin_small_224": (64, named("vitamin_small_224", img_size=64, depth=2)),
    "volo_d1_224": (
        64,
        built(
            "volo:VOLO",
            layers=(1, 1, 1, 1),
            img_size=64,
            embed_dims=(16, 32, 32, 32),
            num_heads=(1, 2, 2, 2),
        ),
    ),
    "ese_vovnet19b_slim_dw": (64, named("ese_vovnet19b_slim_dw")),
    "xcit_nano_12_p16_224": (32, named("xcit_nano_12_p16_224", img_size=32, depth=2)),
    "xception41": (96, named("xception41")),
}
"""By name: the image size in pixels and how the model is built."""


def _mvit() -> nn.Module:
    home = import_module("timm.models.mvitv2")
    config = home.MultiScaleVitCfg(depths=FOUR, embed_dim=16, num_heads=1)
    return home.MultiScaleVit(config, img_size=64, num_classes=NUM_CLASSES)


def _bit() -> nn.Module:
    home, layers = import_module("timm.models.resnetv2"), import_module("timm.layers")
    return home.ResNetV2(
        layers=FOUR,
        channels=(128, 128, 256, 256),
        stem_type="fixed",
        conv_layer=layers.StdConv2d,
        num_classes=NUM_CLASSES,
    )


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The model `name` in float64 without neutral values, and two images for it."""
    size, make = MODELS[name]
    torch.manual_seed(1)
    return roughened(make()), images(size)


def roughened(model: nn.Module) -> nn.Module:
    """The model in float64 and evaluation mode, with noise on all that starts at 0 or 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2 or not parameter.any():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.double().eval()


def images(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
