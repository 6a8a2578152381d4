"""A tiny ViT, plain and with LoRA, and a check that a model is as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from analysis_models import LINEARS, new_vit, perturb_trainable
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn


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
