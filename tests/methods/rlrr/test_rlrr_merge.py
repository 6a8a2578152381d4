"""Safe merging, and attentions that own the weights of q, k, v."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model
from rlrr_models import images, outputs, random_adapter, random_backbone
from torch import nn

from vitune.backbones.sites import find_sites
from vitune.errors import AdapterError, BackboneError
from vitune.methods import MethodLayer, RLRRConfig
from vitune.methods.core.in_projection import InProjection, linear_view
from vitune.methods.rlrr.layers import ShiftedBias


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["scale_out", "shift"])
def test_a_safe_merge_refuses_before_anything_is_written(part, value):
    adapted = random_adapter(random_backbone())
    layer = adapted.base_model.model.blocks[1].mlp.fc2
    with torch.no_grad():
        getattr(layer, part)["default"][0] = value
    before = [p.clone() for n, p in adapted.named_parameters() if "base_layer" in n]
    with pytest.raises(AdapterError, match=r"non-finite .* at 'blocks\.1\.mlp\.fc2'"):
        adapted.merge_adapter(safe_merge=True)
    with pytest.raises(AdapterError, match="Nothing was merged"):
        adapted.merge_and_unload(safe_merge=True)
    after = [p for n, p in adapted.named_parameters() if "base_layer" in n]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(m.merged for m in adapted.modules() if isinstance(m, MethodLayer))
    adapted.merge_adapter()
    assert layer.merged


def test_a_safe_merge_sees_what_overflows_only_in_the_bases_dtype():
    adapted = random_adapter(random_backbone().half())
    with torch.no_grad():
        adapted.base_model.model.blocks[0].mlp.fc1.shift["default"][0] = 1e6
    with pytest.raises(AdapterError, match=r"non-finite bias at 'blocks\.0\.mlp\.fc1'"):
        adapted.merge_adapter(safe_merge=True)


def test_a_merged_bias_is_not_the_trained_shift_itself():
    adapted = random_adapter(random_backbone("timm_swin"))
    layer = adapted.base_model.model.layers[1].downsample.reduction
    adapted.merge_adapter()
    merged = layer.get_base_layer().bias
    assert merged is not layer.shift["default"] and not merged.requires_grad


def test_merging_one_of_two_adapters_and_then_the_other():
    adapted = random_adapter(random_backbone())
    adapted.add_adapter("other", RLRRConfig(sides="in"))
    before = state(adapted)
    adapted.merge_adapter(["other"])
    with pytest.warns(UserWarning, match="additionally merging default"):
        adapted.merge_adapter(["default"])
    adapted.unmerge_adapter()
    assert same(state(adapted), before)


@pytest.mark.parametrize("name", ["timm_vit", "torchvision_vit", "timm_beit"])
def test_a_merged_model_may_change_its_dtype_before_it_is_unmerged(name):
    adapted = random_adapter(random_backbone(name))
    expected = state(copy.deepcopy(adapted).double())
    adapted.merge_adapter()
    adapted.double()
    adapted.unmerge_adapter()
    assert same(state(adapted), expected)


def test_small_scales_are_not_rounded_away_in_half_precision():
    adapted = get_peft_model(random_backbone(embed_dim=64).bfloat16(), RLRRConfig(init="identity"))
    layer = adapted.base_model.model.patch_embed.proj
    x = images(64).bfloat16()
    with torch.no_grad():
        layer.scale["default"].fill_(1.003)
        plain, scaled = layer.get_base_layer()(x).float(), layer(x).float()
    assert torch.tensor(1.003).bfloat16() == 1
    assert scaled.abs().sum() > 1.001 * plain.abs().sum()


def test_the_attentions_fast_path_sees_the_adapter(monkeypatch):
    adapted = random_adapter(random_backbone("torchvision_vit"))
    x = images()
    expected = adapted(x).detach()
    calls = []
    native = torch._native_multi_head_attention

    def counted(*args):
        calls.append(args)
        return native(*args)

    monkeypatch.setattr(torch, "_native_multi_head_attention", counted)
    torch.testing.assert_close(outputs(adapted, x), expected, rtol=1e-5, atol=1e-6)
    assert len(calls) == 2
    attention = adapted.base_model.model.encoder.layers[0].self_attention
    assert torch.equal(calls[0][5], attention.in_proj.weight)
    assert not torch.equal(calls[0][5], attention.in_proj.get_base_layer().weight)
    assert torch.equal(calls[0][7], attention.out_proj.weight)


def test_an_attention_keeps_its_parameters_and_its_names():
    base = random_backbone("torchvision_vit")
    attention = base.encoder.layers[0].self_attention
    own, places = attention.in_proj_weight, set(base.state_dict())
    kind = type(attention)
    adapted = random_adapter(base)
    assert isinstance(attention, kind) and type(attention) is not kind
    assert attention.in_proj.get_base_layer().weight is own
    assert attention.state_dict()["in_proj_weight"].data_ptr() == own.data_ptr()
    kept = {name for name in base.state_dict() if "in_proj" in name and "scale" not in name}
    assert {name for name in places if "in_proj" in name} <= kept
    adapted.add_adapter("other", RLRRConfig(roles=("v",), rank=2))
    assert attention.in_proj.scale_in["other"].shape == (1, 2, 16)
    assert attention.in_proj.scale_in["default"].shape == (3, 1, 16)
    adapted.delete_adapter("other")
    adapted.unload()
    assert type(attention) is kind and attention.in_proj_weight is own
    assert not hasattr(attention, "in_proj")


def test_a_copied_attention_reads_its_own_weights():
    adapted = random_adapter(random_backbone("torchvision_vit"))
    x = images()
    expected = outputs(adapted, x)
    copied = copy.deepcopy(adapted)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    torch.testing.assert_close(outputs(adapted, x), expected, rtol=0, atol=0)
    assert not outputs(copied, x).any()


def test_a_bias_free_attention_gets_one_on_merge():
    base = random_backbone("torchvision_vit")
    for layer in base.encoder.layers:
        layer.self_attention = nn.MultiheadAttention(16, 2, bias=False, batch_first=True).eval()
    adapted = random_adapter(base)
    x = images()
    expected = outputs(adapted, x)
    adapted.merge_adapter()
    merged = outputs(adapted, x)
    assert (merged - expected).abs().max() <= 1e-5 * expected.abs().max()
    adapted.unmerge_adapter()
    assert base.encoder.layers[0].self_attention.in_proj.get_base_layer().bias is None
    merged = adapted.merge_and_unload()
    assert (outputs(merged, x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert merged.encoder.layers[0].self_attention.in_proj_bias is not None


def test_an_attention_with_unequal_widths_is_refused():
    with pytest.raises(BackboneError, match="expected one width for q, k and v"):
        linear_view(nn.MultiheadAttention(16, 2, kdim=8, vdim=8))
    attention = nn.MultiheadAttention(16, 2)
    assert isinstance(linear_view(attention), InProjection)
    assert linear_view(attention.out_proj) is attention.out_proj


def test_a_layer_that_does_not_merge_is_refused_where_it_would_be_passed_over():
    class CallsOnly(MethodLayer):
        mergeable = False

    class CallsOnlyConfig(RLRRConfig):
        def layer_class(self, site, module):
            return CallsOnly

    with pytest.raises(BackboneError, match="got an attention that reads weights itself"):
        get_peft_model(random_backbone("torchvision_vit"), CallsOnlyConfig(roles=("qkv",)))


@pytest.mark.parametrize("name", ["timm_beit", "timm_eva", "timm_swin_v2"])
@pytest.mark.parametrize("is_added_after", [False, True])
def test_separate_biases_are_shifted_for_q_and_v_and_merged_in_place(name, is_added_after):
    base = random_backbone(name)
    sites = [site for site in find_sites(base) if site.separate_bias]
    attentions = [base.get_submodule(site.name.rpartition(".")[0]) for site in sites]
    for attention in attentions:
        attention.qkv_bias_separate = is_added_after
    architecture = [name for name in base.state_dict() if "attn" in name]
    adapted = random_adapter(base)
    x = images()
    expected = outputs(adapted, x)
    shifts = {
        name
        for name, parameter in adapted.named_parameters()
        if parameter.requires_grad and "_bias" in name
    }
    assert len(shifts) == 2 * len(sites) and not any("k_bias" in name for name in shifts)
    merged = adapted.merge_and_unload()
    assert [name for name in merged.state_dict() if "attn" in name] == architecture
    assert (outputs(merged, x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(attention.qkv.bias is None for attention in attentions)


def test_separate_biases_of_parts_not_named_stay():
    adapted = random_adapter(random_backbone("timm_beit"), roles=("k", "v"))
    names = [n for n, p in adapted.named_parameters() if p.requires_grad and "_bias" in n]
    assert len(names) == 2 and all("v_bias" in name for name in names)
    slots = [module for module in adapted.modules() if isinstance(module, ShiftedBias)]
    assert [(s.site.name, s.site.role, s.site.block) for s in slots] == [
        ("blocks.0.attn", "qkv", 0),
        ("blocks.1.attn", "qkv", 1),
    ]


def test_disabling_reaches_weights_that_are_only_read():
    base = random_backbone("torchvision_vit")
    adapted = random_adapter(base)
    adapted.merge_adapter()
    layer = base.encoder.layers[0].self_attention.out_proj
    merged = layer.weight
    with adapted.disable_adapter():
        assert not torch.equal(layer.weight, merged) and not layer.merged
