"""PEFT's own methods on a small timm ViT: each works there, or is listed with a reason."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitune.errors import VituneError
from vitune.methods import METHODS, MethodConfig, get_method
from vitune.methods.core.peft_targets import UNSUPPORTED
from vitune.training.last_block import class_tail, lean_training

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
def test_method_of_peft_trains_on_a_vit(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny()
    peft_model = get_peft_model(model, METHODS[name].configure(model, SMALL.get(name)))
    told = capfd.readouterr()
    assert told.out == "" and "%|" not in told.err  # a progress bar would mix with vitune's lines
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
    assert all(
        before[key].requires_grad or value.requires_grad
        for key, value in peft_model.named_parameters()
        if key in moved
    )


@pytest.mark.parametrize("name", PEFT_NAMES)
def test_lean_step_gives_the_same_gradients(name: str) -> None:
    model = tiny()
    adapted = get_peft_model(model, METHODS[name].configure(model, SMALL.get(name))).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    gradients: list[dict[str, Tensor]] = []
    for circumstances in (nullcontext(), lean_training(class_tail(adapted))):
        adapted.zero_grad()
        with circumstances:
            nn.functional.cross_entropy(adapted(images), labels).backward()
        gradients.append(
            {k: p.grad.clone() for k, p in adapted.named_parameters() if p.grad is not None}
        )
    telling = {key: value for key, value in gradients[0].items() if value.abs().max() > 1e-6}
    assert len(telling) >= 3
    for key, expected in telling.items():
        torch.testing.assert_close(gradients[1][key], expected, rtol=1e-4, atol=1e-6)


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
