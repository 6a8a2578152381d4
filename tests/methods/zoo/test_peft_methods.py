"""PEFT's own methods on a small timm ViT: each works there, or is listed with a reason."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitune.errors import VituneError
from vitune.methods import METHODS, MethodConfig, get_method
from vitune.methods._peft_targets import UNSUPPORTED

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}:UserWarning")
    for message in (
        "Unsupported layer type .* encountered",
        "Sparse invariant checks are implicitly disabled",
        "Failed to load the CUDA extension",
        "Setting boft_n_butterfly_factor to 1",
    )
]
PEFT_NAMES = [name for name, method in METHODS.items() if not method.ours]
SMALL = {
    "c3a": {"block_size": 8},
    "miss": {"r": 8},
    "road": {"group_size": 16},
    "shira": {"r": 4},
    "vblora": {"vector_length": 16, "num_vectors": 16},
    "waveft": {"n_frequency": 100},
}
"""Arguments for methods whose defaults need wider layers than the test has."""


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, num_classes=3
    )


@pytest.mark.parametrize("name", PEFT_NAMES)
def test_method_of_peft_trains_on_a_vit(name: str) -> None:
    model = tiny()
    peft_model = get_peft_model(model, METHODS[name].configure(model, SMALL.get(name)))
    before = {key: value.detach().clone() for key, value in peft_model.named_parameters()}
    optimiser = torch.optim.Adam([p for p in peft_model.parameters() if p.requires_grad], lr=1e-2)
    peft_model.train()
    for _ in range(2):
        loss = nn.functional.cross_entropy(
            peft_model(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 0])
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    moved = {
        key for key, value in peft_model.named_parameters() if not torch.equal(value, before[key])
    }
    assert any("modules_to_save" in key for key in moved)
    assert any("modules_to_save" not in key for key in moved)
    assert all(before[key].requires_grad or value.requires_grad
               for key, value in peft_model.named_parameters() if key in moved)


def test_every_peft_method_is_known_or_refused_with_a_reason() -> None:
    all_names = {
        str(getattr(peft_type, "value", peft_type)).lower()
        for peft_type, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if not issubclass(config_class, MethodConfig)
    }
    assert set(PEFT_NAMES) | set(UNSUPPORTED) == all_names
    assert not set(PEFT_NAMES) & set(UNSUPPORTED)
    assert len(PEFT_NAMES) == 33


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_refused_methods_say_why(name: str) -> None:
    with pytest.raises(VituneError, match=r"expected one for images: .+\. 'vitune methods'"):
        get_method(name)


def test_norm_tuning_finds_norms_and_no_linear() -> None:
    model = tiny()
    config = METHODS["ln_tuning"].configure(model)
    peft_model = get_peft_model(model, config)
    trained = sum(
        p.numel()
        for key, p in peft_model.named_parameters()
        if p.requires_grad and "modules_to_save" not in key
    )
    assert trained == 5 * 2 * 32
