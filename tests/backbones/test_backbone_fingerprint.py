"""The fingerprint knows weights, not wrappers, precisions or devices."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from backbone_zoo import MODELS, small
from torch import nn

from vitune.backbones import bare_name, find_sites, fingerprint
from vitune.errors import BackboneError


def test_form_and_repeatability() -> None:
    model = small("vit_base_patch16_224")
    value = fingerprint(model)
    assert value.startswith("v1-") and len(value) == 19
    assert int(value[3:], 16) >= 0
    assert fingerprint(copy.deepcopy(model)) == value


def test_known_value() -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
        model.bias.zero_()
    # sha256 of "bias(1,)" + 0000 + "weight(1, 2)" + 803f 00c0, bfloat16 in little endian.
    assert fingerprint(model) == "v1-2429b8c4dd6fbc09"


def test_precision_does_not_matter_but_values_do() -> None:
    model = small("vit_base_patch16_224")
    value = fingerprint(model)
    assert fingerprint(copy.deepcopy(model).to(torch.bfloat16)) == value
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[0, 0] += 1
    assert fingerprint(model) != value


def test_names_choose_modules_and_parameters() -> None:
    model = small("vit_base_patch16_224")
    names = [site.name for site in find_sites(model) if site.role in ("qkv", "fc1")]
    value = fingerprint(model, names)
    assert fingerprint(model, reversed(names)) == value
    assert fingerprint(model, [*names, f"{names[0]}.weight"]) == value
    assert fingerprint(model, names[1:]) != value
    with torch.no_grad():
        model.head.weight += 1
    assert fingerprint(model, names) == value


def test_wrapping_does_not_matter() -> None:
    model = small("vit_base_patch16_224")
    names = [site.name for site in find_sites(model) if site.role in ("qkv", "final_norm")]
    some, everything = fingerprint(model, names), fingerprint(model)
    config = peft.LoraConfig(target_modules=["qkv", "fc1"], modules_to_save=["head"])
    wrapped = peft.get_peft_model(model, config)
    inside = [site.name for site in find_sites(wrapped) if site.role in ("qkv", "final_norm")]
    assert fingerprint(wrapped, names) == fingerprint(wrapped, inside) == some
    assert fingerprint(wrapped) == everything
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            nn.init.ones_(parameter)
    assert fingerprint(wrapped) == everything


def test_a_wrapped_multihead_attention_counts_whole() -> None:
    model = MODELS["torchvision vit"]()
    names = [site.name for site in find_sites(model) if site.role == "qkv"]
    value = fingerprint(model, names)
    config = peft.LoraConfig(target_modules=["self_attention"])
    assert fingerprint(peft.get_peft_model(model, config), names) == value


def test_bare_name() -> None:
    assert bare_name("base_model.model.blocks.0.attn.qkv.base_layer") == "blocks.0.attn.qkv"
    assert bare_name("base_model.model.head.original_module.weight") == "head.weight"
    assert bare_name("model.layers.0") == "model.layers.0"


def test_unknown_names() -> None:
    model = small("vit_base_patch16_224")
    with pytest.raises(BackboneError, match=r"got 'blocks.7.attn'.*Did you mean blocks"):
        fingerprint(model, ["blocks.7.attn"])
    with pytest.raises(BackboneError, match="no parameter to read"):
        fingerprint(model, [])
