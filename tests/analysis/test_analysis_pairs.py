"""Pairs of weights: equal to what merging gives, complete, and the model as it was."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from analysis_models import LINEARS, new_vit, perturb_trainable
from peft import (
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PolyConfig,
    get_peft_model,
)
from torch import nn
from torchvision.models import VisionTransformer

from vitune.analysis import WeightPair, weight_pairs
from vitune.errors import AdapterError
from vitune.methods.full import FullConfig
from vitune.methods.linear import LinearProbeConfig
from vitune.methods.rlrr.config import RLRRConfig

PEFT_METHODS = {
    "lora": LoraConfig(target_modules=LINEARS, r=2),
    "dora": LoraConfig(target_modules=LINEARS, r=2, use_dora=True),
    "loha": LoHaConfig(target_modules=LINEARS, r=2),
    "lokr": LoKrConfig(target_modules=LINEARS, r=2),
    "oft": OFTConfig(target_modules=LINEARS, r=0, oft_block_size=4),
    "hra": HRAConfig(target_modules=LINEARS, r=2),
    "ia3": IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"]),
}


def merged_tensor(merged: nn.Module, pair: WeightPair) -> torch.Tensor:
    tensor = merged.get_parameter(pair.name).detach()
    if pair.is_matrix:
        tensor = tensor.reshape(len(tensor), -1)
    return tensor if pair.part is None else tensor.chunk(3)["qkv".index(pair.part)]


def test_every_linear_of_a_lora_vit_is_there_once_with_its_role_and_depth(
    lora_vit: PeftModel,
) -> None:
    pairs = weight_pairs(lora_vit)
    found = [(pair.block, pair.role) for pair in pairs]
    roles = ("q", "k", "v", "attn_out", "fc1", "fc2")
    assert found == [(block, role) for block in (0, 1) for role in roles]
    assert {pair.name for pair in pairs if pair.role == "k"} == {
        "blocks.0.attn.qkv.weight",
        "blocks.1.attn.qkv.weight",
    }
    assert all(pair.is_matrix and pair.before.shape == pair.after.shape for pair in pairs)
    assert pairs.num_unchanged == 1, "the patch embedding"
    assert (pairs.num_unmergeable, pairs.note) == (0, "")


@pytest.mark.parametrize("method", PEFT_METHODS)
def test_pairs_are_the_base_and_the_merged_weights(method: str, same_state) -> None:
    base = new_vit()
    model = get_peft_model(copy.deepcopy(base), PEFT_METHODS[method])
    perturb_trainable(model)
    unchanged = same_state(model)
    pairs = weight_pairs(model)
    unchanged()
    merged = copy.deepcopy(model).merge_and_unload()
    assert len(pairs) == (8 if method == "ia3" else 12)
    for pair in pairs:
        torch.testing.assert_close(
            pair.after.float(), merged_tensor(merged, pair), rtol=1e-5, atol=1e-6
        )
        assert torch.equal(pair.before, merged_tensor(base, pair))


def test_all_methods_are_covered() -> None:
    assert len(PEFT_METHODS) == 7


def test_rlrr_gives_every_weight_it_touches(same_state) -> None:
    base = new_vit()
    model = get_peft_model(copy.deepcopy(base), RLRRConfig())
    perturb_trainable(model)
    unchanged = same_state(model)
    pairs = weight_pairs(model)
    unchanged()
    merged = copy.deepcopy(model).merge_and_unload()
    assert [pair.role for pair in pairs if pair.block == 0 and pair.is_matrix] == [
        *("q", "k", "v", "attn_out", "fc1", "fc2")
    ]
    assert {pair.role for pair in pairs if not pair.is_matrix} >= {"norm1", "norm2", "final_norm"}
    for pair in pairs:
        torch.testing.assert_close(
            pair.after.float(), merged_tensor(merged, pair), rtol=1e-5, atol=1e-6
        )
        assert torch.equal(pair.before, merged_tensor(base, pair))


def test_full_fine_tuning_gives_every_parameter_outside_the_head(same_state) -> None:
    model = get_peft_model(new_vit(), FullConfig())
    perturb_trainable(model)
    unchanged = same_state(model)
    pairs = weight_pairs(model)
    unchanged()
    expected = {name for name, _ in new_vit().named_parameters() if not name.startswith("head.")}
    assert {pair.name for pair in pairs} == expected
    assert {pair.role for pair in pairs if pair.name in ("cls_token", "pos_embed")} == {"other"}


def test_two_plain_networks_are_compared_as_they_are(lora_vit: PeftModel) -> None:
    merged = copy.deepcopy(lora_vit).merge_and_unload()
    pairs = weight_pairs(new_vit(), merged)
    assert len(pairs) == 12
    for pair in pairs:
        assert torch.equal(pair.after, merged_tensor(merged, pair))


def test_heads_of_any_size_are_left_out(lora_vit: PeftModel) -> None:
    for num_classes in (9, 0):
        base = new_vit()
        base.reset_classifier(num_classes)
        assert len(weight_pairs(base, lora_vit)) == 12


def test_a_model_with_its_adapter_merged_in_gives_the_same_pairs(
    lora_vit: PeftModel, same_state
) -> None:
    apart = weight_pairs(lora_vit)
    lora_vit.merge_adapter()
    unchanged = same_state(lora_vit)
    together = weight_pairs(lora_vit)
    unchanged()
    assert [pair.name for pair in together] == [pair.name for pair in apart]
    for first, second in zip(apart, together, strict=True):
        torch.testing.assert_close(second.before.float(), first.before, rtol=0, atol=1e-6)
        torch.testing.assert_close(second.after, first.after, rtol=0, atol=1e-6)


def test_a_bf16_model_shows_the_change_and_not_the_rounding() -> None:
    model = get_peft_model(new_vit().bfloat16(), LoraConfig(target_modules=["fc1"], r=1))
    perturb_trainable(model, size=0.01)
    for pair in weight_pairs(model):
        assert torch.linalg.matrix_rank(pair.after - pair.before.double()) == 1


def test_only_the_active_adapter_counts(lora_vit: PeftModel) -> None:
    lora_vit.add_adapter("second", LoraConfig(target_modules=["fc1"], r=2))
    assert len(weight_pairs(lora_vit)) == 12
    lora_vit.set_adapter("second")
    nothing_yet = weight_pairs(lora_vit)
    assert len(nothing_yet) == 0, "a new LoRA is the identity"
    assert nothing_yet.note == "No weight differs from the base."
    perturb_trainable(lora_vit)
    assert {pair.role for pair in weight_pairs(lora_vit)} == {"fc1"}


def test_trained_norms_are_vectors(same_state) -> None:
    with pytest.warns(UserWarning, match="proceed at your own risk"):
        model = get_peft_model(new_vit(), LNTuningConfig(target_modules=["norm1"]))
    perturb_trainable(model)
    unchanged = same_state(model)
    pairs = weight_pairs(model)
    unchanged()
    assert [pair.name for pair in pairs] == [
        f"blocks.{block}.norm1.{part}" for block in (0, 1) for part in ("weight", "bias")
    ]
    assert not any(pair.is_matrix for pair in pairs)
    assert pairs.num_unchanged == 13


def test_modules_saved_whole_are_compared_with_their_originals() -> None:
    model = get_peft_model(
        new_vit(), LoraConfig(target_modules=["qkv"], r=1, modules_to_save=["head", "norm"])
    )
    perturb_trainable(model)
    assert {pair.role for pair in weight_pairs(model)} == {"q", "k", "v", "final_norm"}


def test_what_cannot_be_merged_is_counted_and_told() -> None:
    model = get_peft_model(new_vit(), PolyConfig(target_modules=["fc1"], r=2, n_tasks=1))
    pairs = weight_pairs(model)
    assert (len(pairs), pairs.num_unmergeable, pairs.num_unchanged) == (0, 2, 13)
    assert pairs.note.startswith("2 of 2 adapted modules cannot be merged (Linear)")


def test_a_linear_probe_changes_no_weight_outside_the_head() -> None:
    pairs = weight_pairs(get_peft_model(new_vit(), LinearProbeConfig()))
    assert (len(pairs), pairs.num_unmergeable) == (0, 0)
    assert "changes no weight outside the head" in pairs.note


def test_attention_of_torchvision_is_split_into_q_k_v(same_state) -> None:
    torch.manual_seed(0)
    base = VisionTransformer(
        image_size=16, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    model = get_peft_model(
        copy.deepcopy(base),
        LoraConfig(target_modules=["self_attention"], r=2, init_lora_weights=False),
    )
    unchanged = same_state(model)
    pairs = {pair.role: pair for pair in weight_pairs(model)}
    unchanged()
    assert list(pairs) == ["q", "k", "v", "attn_out"]
    attention = base.encoder.layers[0].self_attention
    assert torch.equal(pairs["v"].before, attention.in_proj_weight[32:])
    assert torch.equal(pairs["attn_out"].before, attention.out_proj.weight)


def test_convolutions_are_matrices_with_the_depth_of_their_block() -> None:
    torch.manual_seed(0)
    base = timm.models.resnet.ResNet(
        timm.models.resnet.BasicBlock, [1, 1, 1, 1], channels=(4, 4, 6, 8), stem_width=4
    )
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.1)
    pairs = {pair.name: pair for pair in weight_pairs(base, tuned)}
    conv = pairs["layer2.0.conv2.weight"]
    assert (conv.role, conv.block, tuple(conv.before.shape)) == ("conv", 1, (4, 4 * 9))
    assert torch.equal(conv.before, base.layer2[0].conv2.weight.flatten(1))
    assert pairs["layer3.0.downsample.0.weight"].block == 2
    assert pairs["conv1.weight"].block is None


def test_a_bias_that_merging_adds_is_compared_with_zeros() -> None:
    base = nn.Sequential(nn.Linear(3, 2, bias=False))
    tuned = nn.Sequential(nn.Linear(3, 2))
    tuned[0].weight = base[0].weight
    (pair,) = weight_pairs(base, tuned)
    assert (pair.name, pair.role, pair.is_matrix) == ("0.bias", "other", False)
    assert torch.equal(pair.before, torch.zeros(2))


def test_roles_of_an_unknown_network_are_other() -> None:
    base, tuned = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2))
    pairs = weight_pairs(base, tuned)
    assert {pair.role for pair in pairs} == {"other"}
    assert "No block of this network is recognised" in pairs.note


@pytest.mark.parametrize("changes", [{"depth": 3}, {"depth": 1}, {"embed_dim": 28}])
def test_networks_of_other_shapes_are_refused(changes: dict) -> None:
    with pytest.raises(AdapterError, match=r"tuned: got a network that differs from the base in"):
        weight_pairs(new_vit(), new_vit(**changes))
