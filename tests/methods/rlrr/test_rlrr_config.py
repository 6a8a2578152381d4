"""What RLRRConfig refuses, and where it acts."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from rlrr_models import random_adapter, random_backbone
from torch import nn

from vitune.backbones.sites import Site, find_sites
from vitune.errors import BackboneError, VituneError
from vitune.methods import MethodLayer, RLRRConfig
from vitune.methods.rlrr.layers import RescaledLinear

REFUSED = [
    ({"rank": 0}, "rank: got 0"),
    ({"rank": 1.5}, "rank: got 1.5"),
    ({"rank": 2, "sides": "in"}, "one side alone has no rank"),
    ({"sides": "left"}, "sides: got 'left'"),
    ({"init": "kaiming"}, "init: got 'kaiming'"),
    ({"init": "constant", "rank": 2}, "equal components get equal gradients"),
    ({"norms": "layer"}, "norms: got 'layer'"),
    ({"fused_qkv": "fused"}, "fused_qkv: got 'fused'"),
    ({"shift": "false"}, "shift: got 'false', expected true or false"),
    ({"patch_embed": 1}, "patch_embed: got 1, expected true or false"),
    ({"hadamard": False, "sides": "in"}, "hadamard: got False"),
    ({"hadamard": False, "residual": False}, "hadamard: got False"),
    ({"token_share": 0}, "token_share: got 0, expected a share in"),
    ({"token_share": 1.5}, "token_share: got 1.5, expected a share in"),
    ({"token_share": True}, "token_share: got True, expected a share in"),
    ({"token_share": "half"}, "token_share: got 'half', expected a share in"),
    ({"token_share": 0.5, "fast": False}, "token_share: got 0.5 beside fast=False"),
    ({"token_share": 0.5, "hadamard": False}, "token_share: got 0.5 beside fast=False"),
    ({"norms": None, "roles": ("norm1", "fc1")}, "norms: got None with roles"),
    ({"patch_embed": True, "roles": ("fc1",)}, "patch_embed: got True with roles"),
    ({"patch_embed": False, "roles": ("patch_embed",)}, "patch_embed: got False with roles"),
    ({"fused_qkv": "whole", "roles": ("q", "v")}, "fused_qkv: got 'whole' with roles"),
    ({"roles": ("head",)}, "roles: got .'head'."),
    ({"roles": ("block", "fc1")}, "roles: got .'block'."),
    ({"roles": ("fc3",)}, "Did you mean fc2 or fc1"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(item[0]) for item in REFUSED])
def test_a_value_or_contradiction_is_refused(options, message):
    with pytest.raises(VituneError, match=message):
        RLRRConfig(**options)


def adapted_places(**options: object) -> set[tuple[int | None, str]]:
    model = random_backbone(depth=4)
    get_peft_model(model, RLRRConfig(**options))
    layers = [module for module in model.modules() if isinstance(module, MethodLayer)]
    return {(layer.site.block, layer.site.role) for layer in layers}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"roles": "attn", "blocks": 0}, {(0, "qkv"), (0, "attn_out")}),
        ({"roles": ("mlp",), "blocks": (-1,)}, {(3, "fc1"), (3, "fc2")}),
        (
            {"roles": ["norms"], "blocks": range(0, 4, 2)},
            {(0, "norm1"), (0, "norm2"), (2, "norm1"), (2, "norm2"), (None, "final_norm")},
        ),
        (
            {"roles": ("linears",), "blocks": [1]},
            {(1, role) for role in ("qkv", "attn_out", "fc1", "fc2")},
        ),
        ({"roles": ("patch_embed",)}, {(None, "patch_embed")}),
    ],
)
def test_the_insertion_study_is_a_config(options, expected):
    assert adapted_places(**options) == expected


def test_leaving_parts_out():
    everything = adapted_places()
    norms = {place for place in everything if "norm" in place[1]}
    assert len(everything) == 4 * 6 + 2 and len(norms) == 9
    assert adapted_places(norms=None) == everything - norms
    assert adapted_places(patch_embed=False) == everything - {(None, "patch_embed")}
    only_last = adapted_places(blocks=(3,))
    assert only_last == {place for place in everything if place[0] in (3, None)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roles": ("reduction",)}, "expected roles of this backbone"),
        ({"roles": ("fc1", "conv")}, "got .'conv'., expected roles of this backbone"),
        ({"blocks": (2,)}, "the backbone has 2 blocks"),
    ],
)
def test_what_the_backbone_does_not_have_is_refused(options, message):
    with pytest.raises(VituneError, match=message):
        get_peft_model(random_backbone(), RLRRConfig(**options))


def test_a_layer_of_another_kind_is_refused():
    model = random_backbone()
    model.blocks[1].norm1 = nn.RMSNorm(16)
    with pytest.raises(BackboneError, match="got 'RMSNorm', expected a LayerNorm"):
        get_peft_model(model, RLRRConfig())
    with pytest.raises(BackboneError, match="got 'Conv3d', expected a Linear or Conv2d"):
        site = next(site for site in find_sites(random_backbone()) if site.role == "fc1")
        RLRRConfig().layer_class(site, nn.Conv3d(1, 1, 1))


def test_q_k_v_of_unequal_widths_are_one_linear():
    site = Site("attn.qkv", "qkv", 0, num_parts=1, parts=("q", "k", "v"))
    assert RLRRConfig().is_whole(site) and RLRRConfig(roles=("qkv",)).is_whole(site)
    assert RLRRConfig(roles=("attn",)).layer_class(site, nn.Linear(4, 8)) is RescaledLinear
    with pytest.raises(BackboneError, match="expected all of q, k, v"):
        RLRRConfig(roles=("q", "fc1")).layer_class(site, nn.Linear(4, 8))


def test_windowed_attention_is_one_linear_unless_parts_are_named():
    for options, parts in (({}, 1), ({"fused_qkv": "split"}, 3), ({"roles": ("q", "v")}, 2)):
        adapted = random_adapter(random_backbone("timm_swin"), **options)
        layer = adapted.base_model.model.layers[0].blocks[0].attn.qkv
        assert len(layer.scale_in["default"]) == parts


def test_parts_not_named_stay_bit_for_bit():
    adapted = random_adapter(random_backbone(), roles=("q", "v"))
    layer = adapted.base_model.model.blocks[0].attn.qkv
    base, effective = layer.base_tensors(), layer.effective_tensors()
    for key in ("weight", "bias"):
        (q, k, v), (new_q, new_k, new_v) = base[key].chunk(3), effective[key].chunk(3)
        assert torch.equal(k, new_k) and not torch.equal(q, new_q) and not torch.equal(v, new_v)
