"""Where only the class token is needed behind the last attention, and where that is not so."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionViT
from transformers import ViTConfig, ViTForImageClassification

from vitune.adapters import inject
from vitune.backbones import logits_of
from vitune.methods import get_method
from vitune.training.last_block import class_tail, lean_training

SMALL = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}


def of_timm(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    return timm.create_model(name, **{**SMALL, "patch_size": 8, **options}).eval()


def of_transformers() -> nn.Module:
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        image_size=32, patch_size=8, num_labels=3, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


def of_torchvision() -> nn.Module:
    return TorchvisionViT(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48,
        num_classes=3,
    ).eval()  # fmt: skip


READS_ONE_TOKEN = {
    "timm": of_timm,
    "registers": lambda: of_timm("vit_small_patch14_reg4_dinov2", global_pool="token"),
    "layer scale": lambda: of_timm(init_values=0.1),
    "transformers": of_transformers,
    "torchvision": of_torchvision,
}


@pytest.mark.parametrize("kind", READS_ONE_TOKEN)
def test_logits_and_gradients_are_exact(kind: str) -> None:
    model = READS_ONE_TOKEN[kind]()
    assert class_tail(model)
    check(model)


@pytest.mark.parametrize("method", ["rlrr", "lora", "ssf", "bitfit", "hira"])
def test_any_method_on_top(method: str) -> None:
    model = of_timm()
    arguments = {"r": 2} if method in ("lora", "hira") else {}
    adapted = inject(model, get_method(method).configure(model, arguments))
    assert len(class_tail(adapted)) == 2
    check(adapted)


@pytest.mark.parametrize(
    "model",
    [
        of_timm(global_pool="avg"),
        of_timm("deit_tiny_distilled_patch16_224"),
        timm.create_model("resnet10t", num_classes=3),
        nn.Linear(2, 2),
        timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=32, embed_dim=12, depths=(1, 1),
            num_heads=(1, 2), window_size=4, num_classes=3,
        ),
    ],
    ids=["mean of patches", "two heads", "convolutions", "no blocks", "windows"],
)  # fmt: skip
def test_elsewhere_there_is_no_tail(model: nn.Module) -> None:
    assert class_tail(model) == ()


def check(model: nn.Module) -> None:
    images = torch.randn(2, 3, 32, 32)
    trained = [p for p in model.parameters() if p.requires_grad]
    results = []
    for tail in ((), class_tail(model)):
        with lean_training(tail):
            logits = logits_of(model(images))
            grads = torch.autograd.grad(logits.square().sum(), trained)
        results.append([logits, *grads])
    for plain, lean in zip(*results, strict=True):
        torch.testing.assert_close(lean, plain, atol=1e-5, rtol=1e-4)
