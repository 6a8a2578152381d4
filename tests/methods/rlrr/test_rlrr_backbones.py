"""RLRR on every kind of backbone: counts, merging, disabling, saving, copying, gradients."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from peft import PeftModel, get_peft_model
from rlrr_models import (
    BACKBONES,
    images,
    num_trained,
    outputs,
    plain,
    random_adapter,
    random_backbone,
)

from vitune.backbones.sites import find_sites, head_names
from vitune.methods import MethodLayer, RLRRConfig
from vitune.methods.rlrr.layers import RescaledConv2d, RescaledLinear

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT reads it
)

PAPER_COUNTS = [
    ("vit_base_patch16_224", {}, 288_768),
    ("vit_large_patch16_224", {}, 765_952),
    ("vit_huge_patch14_224", {}, 1_274_880),
    ("swin_base_patch4_window7_224", {}, 358_144),
    ("vit_base_patch16_224", {"rank": 2}, 454_656),
    ("vit_base_patch16_224", {"rank": 4}, 786_432),
    ("vit_base_patch16_224", {"rank": 8}, 1_449_984),
    ("vit_base_patch16_224", {"sides": "out"}, 205_824),
    ("vit_base_patch16_224", {"sides": "in"}, 205_824),
    ("vit_base_patch16_224", {"hadamard": False}, 288_768),
    ("resnet18", {}, 74_809 - 51_300),
    ("resnet18", {"rank": 10}, 286_390 - 51_300),
    ("resnet50", {}, 269_497 - 204_900),
    ("resnet50", {"rank": 10}, 850_870 - 204_900),
]
VARIANTS = {
    "paper": {},
    "rank 3": {"rank": 3},
    "out": {"sides": "out"},
    "in": {"sides": "in"},
    "no residual": {"residual": False, "rank": 2},
    "out, no residual": {"residual": False, "sides": "out"},
    "without W": {"hadamard": False, "rank": 2},
    "no shift": {"shift": False},
    "whole": {"fused_qkv": "whole"},
    "reference": {"fast": False},
    "q and v": {"roles": ("q", "v")},
    "q and v, in": {"roles": ("q", "v"), "sides": "in"},
    "k, no residual": {"roles": ("k", "fc1"), "residual": False},
}


@pytest.mark.parametrize(("name", "options", "expected"), PAPER_COUNTS)
def test_the_counts_without_head_are_the_papers(name, options, expected):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=100)
        config = RLRRConfig(**options)
        assert config.num_parameters(model, config.choose(find_sites(model))) == expected
        assert num_trained(get_peft_model(model, config)) == expected


def test_torchvision_vit_b_counts_as_the_timm_one():
    from torchvision.models import vit_b_16

    with torch.device("meta"):
        config = RLRRConfig()
        model = vit_b_16()
        assert config.num_parameters(model, config.choose(find_sites(model))) == 288_768
        assert num_trained(get_peft_model(model, config)) == 288_768


def assert_life_cycle(base, adapted, x):
    """Merged acts as adapted; un-merging and disabling give the base back."""
    weights = {name: value.clone() for name, value in base.items()}
    expected = outputs(adapted, x)
    with adapted.disable_adapter():
        plain_output = outputs(adapted, x)
    adapted.merge_adapter(safe_merge=True)
    merged = outputs(adapted, x)
    with adapted.disable_adapter():
        torch.testing.assert_close(outputs(adapted, x), plain_output, rtol=0, atol=0)
    adapted.unmerge_adapter()
    for name, value in base.items():
        assert torch.equal(value, weights[name]), name
    torch.testing.assert_close(outputs(adapted, x), expected, rtol=0, atol=0)
    assert (merged - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (plain_output - expected).abs().max() > 1e-3 * expected.abs().max()
    unloaded = copy.deepcopy(adapted).merge_and_unload()
    assert (outputs(unloaded, x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not any(isinstance(module, MethodLayer) for module in unloaded.modules())


@pytest.mark.parametrize("name", BACKBONES)
def test_life_cycle_on_every_backbone(name, tmp_path: Path):
    base = random_backbone(name)
    x = images()
    fresh = copy.deepcopy(base)
    config = RLRRConfig()
    expected_count = config.num_parameters(base, config.choose(find_sites(base)))
    adapted = random_adapter(base)
    assert num_trained(adapted) == expected_count
    frozen = {n: p for n, p in adapted.named_parameters() if not p.requires_grad}
    assert_life_cycle(frozen, adapted, x)

    adapted.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(copy.deepcopy(fresh), tmp_path).eval()
    torch.testing.assert_close(outputs(reloaded, x), outputs(adapted, x), rtol=0, atol=0)
    copied = copy.deepcopy(adapted)
    torch.testing.assert_close(outputs(copied, x), outputs(adapted, x), rtol=0, atol=0)

    restored = adapted.unload()
    left, first = restored.state_dict(), fresh.state_dict()
    assert list(left) == list(first)
    heads = tuple(f"{head}." for head in head_names(fresh))
    assert all(torch.equal(left[key], first[key]) for key in first if not key.startswith(heads))
    assert [type(m) for m in restored.modules()] == [type(m) for m in fresh.modules()]


@pytest.mark.parametrize("name", BACKBONES)
def test_only_adapter_and_head_get_gradients_and_all_of_them_do(name):
    adapted = random_adapter(random_backbone(name)).train()
    plain(adapted(images())).square().sum().backward()
    for key, parameter in adapted.named_parameters():
        if "original_module" in key:
            continue
        assert (parameter.grad is not None) == parameter.requires_grad, key
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backbone", ["timm_vit", "hf_vit", "torchvision_vit", "timm_swin_v2"])
def test_life_cycle_of_every_variant(variant, backbone):
    base = random_backbone(backbone)
    config = RLRRConfig(**VARIANTS[variant])
    expected_count = config.num_parameters(base, config.choose(find_sites(base)))
    adapted = random_adapter(base, **VARIANTS[variant])
    assert num_trained(adapted) == expected_count
    frozen = {n: p for n, p in adapted.named_parameters() if not p.requires_grad}
    assert_life_cycle(frozen, adapted, images())


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "q" not in name])
def test_bias_free_linears_get_their_bias_on_merge(variant):
    base = random_backbone("timm_vit", qkv_bias=False)
    adapted = random_adapter(base, **VARIANTS[variant])
    frozen = {n: p for n, p in adapted.named_parameters() if not p.requires_grad}
    assert_life_cycle(frozen, adapted, images())
    merged = adapted.merge_and_unload()
    has_bias = merged.blocks[0].attn.qkv.bias is not None
    assert has_bias == VARIANTS[variant].get("shift", True)


def test_patch_merging_gets_a_bias_from_the_shift():
    adapted = random_adapter(random_backbone("timm_swin"))
    layer = adapted.base_model.model.layers[1].downsample.reduction
    assert isinstance(layer, RescaledLinear) and layer.get_base_layer().bias is None
    shift = layer.shift["default"].detach().clone()
    merged = adapted.merge_and_unload()
    assert torch.equal(merged.layers[1].downsample.reduction.bias, shift)


def test_convnext_adapts_linears_and_convolutions_only_when_asked():
    adapted = random_adapter(random_backbone("timm_convnext"))
    assert not any(isinstance(module, RescaledConv2d) for module in adapted.modules())
    adapted = random_adapter(random_backbone("timm_convnext"), roles=("conv", "fc1"))
    convolutions = [m for m in adapted.modules() if isinstance(m, RescaledConv2d)]
    assert any(m.get_base_layer().groups == m.get_base_layer().in_channels for m in convolutions)
    frozen = {n: p for n, p in adapted.named_parameters() if not p.requires_grad}
    assert_life_cycle(frozen, adapted, images())


def test_a_convolution_is_rescaled_as_the_papers_matrix():
    adapted = random_adapter(random_backbone("timm_resnext"), rank=2)
    layer = next(
        module
        for module in adapted.modules()
        if isinstance(module, RescaledConv2d) and module.get_base_layer().groups == 2
    )
    weight = layer.get_base_layer().weight
    changed = layer.effective_tensors()["weight"]
    scale_out, scale_in = layer.scale_out["default"], layer.scale_in["default"][0]
    num_out, num_in, height, width = weight.shape
    for out, channel, y, x in [(0, 0, 0, 0), (3, 1, 2, 0), (num_out - 1, num_in - 1, 1, 2)]:
        factor = scale_out[out * height + y] @ scale_in[:, channel * width + x]
        expected = weight[out, channel, y, x] * (1 + factor)
        torch.testing.assert_close(changed[out, channel, y, x], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["timm_vit", "torchvision_vit", "hf_clip", "timm_beit"])
def test_half_precision_bases_train_float32_scales_and_merge_alike(name, dtype):
    adapted = random_adapter(random_backbone(name).to(dtype))
    for key, parameter in adapted.named_parameters():
        if parameter.requires_grad and "modules_to_save" not in key:
            assert parameter.dtype == torch.float32, key
    x = images().to(dtype)
    plain(adapted.train()(x)).float().square().sum().backward()
    expected = outputs(adapted.eval(), x)
    assert expected.dtype == dtype
    weights = {n: p.clone() for n, p in adapted.named_parameters()}
    adapted.merge_adapter(safe_merge=True)
    assert all(p.dtype == dtype for n, p in adapted.named_parameters() if "base_layer" in n)
    merged = outputs(adapted, x)
    epsilon = torch.finfo(dtype).eps
    assert (merged - expected).abs().max() <= 8 * epsilon * expected.abs().max()
    adapted.unmerge_adapter()
    assert all(torch.equal(p, weights[n]) for n, p in adapted.named_parameters())


@pytest.mark.parametrize("name", ["timm_vit", "torchvision_vit", "timm_resnet", "timm_convnext"])
def test_autocast_stays_close_to_full_precision(name):
    adapted = random_adapter(random_backbone(name))
    x = images()
    expected = outputs(adapted, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = outputs(adapted, x).float()
        plain(adapted.train()(x)).float().square().sum().backward()
    assert (result - expected).abs().max() <= 0.05 * expected.abs().max()
    assert all(p.grad is None or p.grad.dtype == p.dtype for p in adapted.parameters())


def test_two_active_adapters_apply_one_after_the_other():
    adapted = random_adapter(random_backbone())
    adapted.add_adapter("other", RLRRConfig(rank=2, roles=("q", "fc2", "norm1")))
    x = images()
    alone = outputs(adapted, x)
    adapted.base_model.set_adapter("other")
    other = outputs(adapted, x)
    layer = adapted.base_model.model.blocks[0].mlp.fc2
    for module in adapted.modules():
        if isinstance(module, MethodLayer):
            module.set_adapter(["default", "other"])
    both = outputs(adapted, x)
    first, second = (
        1 + layer.scale_out[name] @ layer.scale_in[name][0] for name in ("default", "other")
    )
    base = layer.get_base_layer().weight
    torch.testing.assert_close(layer.weight, base * first * second)
    assert not torch.allclose(both, alone) and not torch.allclose(both, other)
    adapted.merge_adapter()
    torch.testing.assert_close(outputs(adapted, x), both, rtol=1e-5, atol=1e-5)
