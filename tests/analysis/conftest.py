"""A tiny ViT, plain and with LoRA, and a check that a model is as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

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


@pytest.fixture
def vit() -> nn.Module:
    return new_vit()


@pytest.fixture
def lora_vit() -> PeftModel:
    config = LoraConfig(target_modules=LINEARS, r=2, modules_to_save=["head"])
    model = get_peft_model(new_vit(), config)
    perturb_trainable(model)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def same_state() -> Callable[[nn.Module], Callable[[], None]]:
    """Remember a model bit for bit; the returned function asserts that it is as it was."""

    def remember(model: nn.Module) -> Callable[[], None]:
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        modes = [module.training for module in model.modules()]

        def check() -> None:
            now = model.state_dict()
            assert now.keys() == tensors.keys()
            assert all(torch.equal(now[name], tensors[name]) for name in tensors)
            assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
            assert [module.training for module in model.modules()] == modes

        return check

    return remember
