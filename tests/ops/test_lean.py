"""The lean step: same gradients from fewer kept tensors, on any network."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.ops import first_token_only, lean_step

ATTENTION: Any = sys.modules["vitune.ops.attention"]


class Mlp(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.norm, self.activation = nn.LayerNorm(8), activation
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.activation(self.fc1(self.norm(x))))


def tiny_vit() -> VisionTransformer:
    return VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=5
    )


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    loss = model(x).float().square().mean()
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU()])
def test_gradients_are_bit_for_bit_the_same(activation: nn.Module) -> None:
    model, x = Mlp(activation), torch.randn(4, 8)
    expected = gradients(model, x)
    with lean_step():
        found = gradients(model, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_too(dtype: torch.dtype) -> None:
    model, x = Mlp(nn.GELU()), torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = gradients(model, x)
        with lean_step():
            found = gradients(model, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Watched(torch.autograd.Function):
    """Keeps its input and shows in the backward pass what it got back."""

    unpacked: ClassVar[list[Tensor]] = []

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        Watched.unpacked.append(ctx.saved_tensors[0])
        return grad


@pytest.mark.parametrize("cast", [None, torch.bfloat16])
def test_results_are_computed_again_and_inputs_kept(cast: torch.dtype | None) -> None:
    model, x = Mlp(nn.GELU()), torch.randn(4, 8)
    Watched.unpacked.clear()
    with lean_step():
        normed = model.norm(x)
        hidden = model.fc1(normed)
        made = F.gelu(hidden)
        made = made if cast is None else made.to(cast)
        y = Watched.apply(made).sum() + Watched.apply(hidden).sum()
    y.backward()
    of_hidden, of_made = sorted(Watched.unpacked, key=lambda t: t.data_ptr() != hidden.data_ptr())
    assert of_hidden.data_ptr() == hidden.data_ptr()
    assert torch.equal(of_made, made) and of_made.data_ptr() != made.data_ptr()


def test_a_tensor_changed_in_place_is_noticed() -> None:
    hidden = torch.randn(4, 8, requires_grad=True) * 1
    weight = nn.Parameter(torch.randn(3, 8))
    with lean_step():
        y = F.linear(F.gelu(hidden), weight)
    with torch.no_grad():
        hidden.add_(1)
    with pytest.raises(RuntimeError, match=r"changed in place|by an inplace operation"):
        y.sum().backward()


def test_outside_the_context_tensors_are_kept() -> None:
    Watched.unpacked.clear()
    with lean_step():
        pass
    made = F.gelu(torch.randn(4, 8, requires_grad=True))
    Watched.apply(made).sum().backward()
    assert Watched.unpacked[0].data_ptr() == made.data_ptr()


def test_the_gradient_may_be_taken_twice() -> None:
    model, x = Mlp(nn.GELU()), torch.randn(4, 8)
    with lean_step():
        loss = model(x).sum()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("has_instructions", [True, False])
def test_a_whole_vit_in_bf16(has_instructions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ATTENTION, "cpu_multiplies_bf16", lambda: has_instructions)
    model, x = tiny_vit(), torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(model, x)
        with lean_step():
            found = gradients(model, x)
    equal = [torch.equal(a, b) for a, b in zip(found, expected, strict=True)]
    assert all(equal) is not has_instructions
    total, difference = (torch.cat([v.flatten() for v in values]) for values in (
        expected, [a - b for a, b in zip(found, expected, strict=True)]
    ))  # fmt: skip
    assert difference.norm() / total.norm() < 0.03


def test_masked_and_dropping_attention_is_left_to_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ATTENTION, "cpu_multiplies_bf16", lambda: True)
    q = torch.randn(1, 2, 4, 8, dtype=torch.bfloat16, requires_grad=True)
    for options in ({"is_causal": True}, {"attn_mask": torch.zeros(4, 4).bfloat16()}):
        with lean_step():
            found = F.scaled_dot_product_attention(q, q, q, **options)  # type: ignore[arg-type]
        expected = F.scaled_dot_product_attention(q, q, q, **options)  # type: ignore[arg-type]
        assert torch.equal(found, expected)


def test_first_token_is_exact_behind_the_last_attention() -> None:
    model, x = tiny_vit(), torch.randn(2, 3, 16, 16)
    expected_logits, expected = model(x), gradients(model, x)
    last = model.blocks[-1]
    shapes: list[torch.Size] = []
    handle = last.mlp.fc1.register_forward_hook(lambda m, a, y: shapes.append(y.shape))
    with first_token_only(last.attn.proj, last.norm2):
        found_logits, found = model(x), gradients(model, x)
    handle.remove()
    torch.testing.assert_close(found_logits, expected_logits)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
    assert {shape[1] for shape in shapes} == {1}
    assert not last.norm2._forward_pre_hooks


def test_hooks_go_when_the_step_fails() -> None:
    model = tiny_vit()
    with pytest.raises(ZeroDivisionError), first_token_only(model.norm):
        raise ZeroDivisionError
    assert not model.norm._forward_pre_hooks
