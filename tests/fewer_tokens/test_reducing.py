"""Fewer tokens in any ViT with any method: exact where nothing goes, refused where it cannot be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitune.adapters import inject
from vitune.backbones import find_sites, logits_of
from vitune.errors import BackboneError
from vitune.fewer_tokens import TokenPlan, TokenReducer, reduce_tokens
from vitune.methods import METHODS
from vitune.ops import lean_step
from vitune.testing.tiny_backbones import build, images, run, vit

NETWORKS = (
    "vit", "vit_registers_no_class_token", "vit_layer_scale", "vit_oblong", "transformers_vit",
    "plain_stack", "bundled",
)  # fmt: skip
PLANS = ("drop:0.5", "merge:0.5@0", "merge:0.3@all")


def reduced(model: nn.Module, text: str) -> TokenReducer:
    reducer = reduce_tokens(model, TokenPlan.parse(text))
    assert reducer is not None
    return reducer


def num_tokens(model: nn.Module, x: Tensor) -> list[int]:
    """How many tokens enter each block."""
    seen: list[int] = []
    names = [site.name for site in find_sites(model) if site.role == "block"]
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args or (*kwargs.values(),))[0].shape[1]),
            with_kwargs=True,
        )
        for name in names
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", NETWORKS)
def test_none_gone_is_exactly_the_network(name: str) -> None:
    model, x = build(name).train(), images(name)
    expected = logits_of(model(x))
    for plan in ("drop:0", "merge:0@all"):
        reducer = reduced(model, plan)
        assert torch.equal(logits_of(model(x)), expected)
        reducer.remove()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("plan", PLANS)
def test_blocks_see_fewer_patches_and_the_head_as_many_images(name: str, plan: str) -> None:
    model, x = build(name), images(name)
    before = num_tokens(model, x)
    reducer = reduced(model, plan)
    model.train()
    in_training = num_tokens(model, x)
    assert in_training[-1] < before[-1]
    logits = logits_of(model(x))
    logits.sum().backward()
    assert logits.shape == (3, 5) and logits.isfinite().all()
    model.eval()
    in_inference = num_tokens(model, x)
    assert in_inference == (before if plan.startswith("drop") else in_training)
    reducer.remove()
    assert num_tokens(model.train(), x) == before


def test_training_only_leaves_inference_alone() -> None:
    model, x = build("vit"), images("vit")
    expected = run(model, x)
    reduced(model, "merge:0.5@0:train")
    assert torch.equal(run(model, x), expected)
    assert not torch.equal(run(model.train(), x), expected)


@pytest.mark.parametrize("pooling", ["token", "avg", "map"])
def test_merging_equal_tokens_changes_nothing(pooling: str) -> None:
    """Patches of even position stand beside their doubles, so that all of them merge exactly."""
    torch.manual_seed(3)
    model = vit(depth=3, global_pool=pooling, class_token=pooling == "token").double().eval()
    with torch.no_grad():
        model.pos_embed.zero_()
    column = torch.randn(2, 3, 32, 8, dtype=torch.float64)
    other = torch.randn(2, 3, 32, 8, dtype=torch.float64)
    x = torch.cat([column, column, other, other], dim=-1)
    expected = run(model, x)
    assert num_tokens(model, x)[0] - (pooling == "token") == 16
    for plan in ("merge:0.5@0", "merge:0.25@0"):
        reducer = reduced(model, plan)
        torch.testing.assert_close(run(model, x), expected)
        reducer.remove()


@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # of layer types, of no CUDA compiler
@pytest.mark.parametrize("method", sorted(METHODS))
def test_any_method_trains_with_fewer_tokens_or_says_why_not(method: str) -> None:
    torch.manual_seed(0)
    backbone = vit()
    try:
        config = METHODS[method].configure(backbone, {})
        model = inject(backbone, config)
    except ValueError as error:
        pytest.skip(f"the method does not take this backbone: {error}")
    x = torch.randn(2, 3, 32, 32)
    for plan in ("drop:0.5", "merge:0.5@0"):
        if getattr(config, "needs_every_patch", False):
            with pytest.raises(BackboneError, match="needs every patch at its position"):
                reduce_tokens(model, TokenPlan.parse(plan))
            continue
        reducer = reduced(model, plan)
        model.train()
        with lean_step():
            logits = model(x)
            logits.square().sum().backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
        assert all(p.grad is None or p.grad.isfinite().all() for p in trained)
        reducer.remove()


def test_checkpointed_blocks_give_the_same_gradient() -> None:
    model, x = build("vit").train(), images("vit")
    reduced(model, "merge:0.5@0")

    def gradient() -> Tensor:
        loss = model(x).square().sum()
        return torch.autograd.grad(loss, model.blocks[0].attn.qkv.weight)[0]

    expected = gradient()
    model.set_grad_checkpointing(True)
    torch.testing.assert_close(gradient(), expected)


def test_a_copy_has_its_own_plan() -> None:
    model, x = build("vit").train(), images("vit")
    reducer = reduced(model, "merge:0.5@0")
    twin = copy.deepcopy(model)
    reducer.remove()
    assert num_tokens(twin, x)[-1] < num_tokens(model, x)[-1]


def test_a_block_that_raises_leaves_attention_as_it_was() -> None:
    model, x = build("vit"), images("vit")
    expected = run(model, x)
    reduced(model, "merge:0.5@0")

    def fails(*_: Any) -> None:
        raise RuntimeError("no")

    hook = model.blocks[1].mlp.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="no"):
        run(model, x)
    hook.remove()
    q = torch.randn(1, 1, 3, 4)
    nn.functional.scaled_dot_product_attention(q, q, q)
    assert run(model, x).shape == expected.shape


def convnet() -> nn.Module:
    import timm

    return timm.create_model("resnet10t", num_classes=5)


def masked() -> nn.Module:
    """Rotary positions come with the tokens of every block."""
    import timm

    return timm.create_model(
        "eva02_tiny_patch14_224", img_size=28, depth=2, embed_dim=24, num_heads=2, num_classes=5
    )


def dense() -> nn.Module:
    return vit(global_pool="")


@pytest.mark.parametrize(
    ("build_it", "plan", "expected"),
    [
        (lambda: build("swin"), "drop:0.5", "with blocks that attend in windows"),
        (lambda: build("swin"), "merge:0.5", "with blocks that attend in windows"),
        (convnet, "drop:0.5", "with (no|a network without a row of) transformer blocks"),
        (masked, "drop:0.5", "called with a mask or positions"),
        (dense, "merge:0.5@0", "a network with dense outputs"),
        (lambda: build("torchvision_vit"), "merge:0.5@0", "attention whose keys cannot be read"),
    ],
)
def test_a_network_that_cannot_is_refused_in_a_line(
    build_it: Any, plan: str, expected: str
) -> None:
    model = build_it()
    with pytest.raises(BackboneError, match=expected) as told:
        reduce_tokens(model, TokenPlan.parse(plan))
    assert "\n" not in str(told.value)
    assert not any(module._forward_hooks for module in model.modules())
