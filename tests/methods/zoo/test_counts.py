"""Trainable parameters without the head on ViT-B/16, against the papers' numbers."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import timm
import torch
from peft import get_peft_model
from torch import nn

from vitune.methods import OWN

COUNTS: list[tuple[str, dict[str, Any], int]] = [
    ("linear", {}, 0),
    ("linear_sgd", {}, 0),
    ("ncm", {}, 0),
    ("bitfit", {}, 102_912),
    ("layernorm", {}, 38_400),
    ("partial", {"num_blocks": 2}, 2 * 7_087_872 + 1_536),
    ("ssf", {}, 205_824),
    ("hta", {"rank": 0}, 110_592),
    ("hta", {}, 184_320),
    ("hta", {"rank": 2}, 258_048),
    ("hta", {"rank": 4}, 405_504),
    ("hta_sequential", {}, 46_080),
    ("arc", {}, 96_432),
    ("arc_att", {}, 48_216),
    ("apla", {}, 73_824),
    ("apla", {"rank": 32}, 295_296),
    ("apla", {"rank": 768}, 7_087_104),
    ("lora_mul_vpt_add", {"rank": 2}, 506_976),
    ("lora_mul_vpt_add", {}, 2_203_104),
    ("lora_add", {"rank": 8}, 1_262_592),
    ("vpt_add", {}, 64_560),
    ("adaptformer", {}, 156_768),
    ("adaptformer", {"rank": 64}, 1_189_632),
    ("vpt_shallow", {"num_prompts": 50}, 38_400),
    ("vpt_deep", {"num_prompts": 50}, 460_800),
    ("fact_tt", {"rank": 4}, 8_448),
    ("fact_tt", {}, 21_504),
    ("fact_tt", {"rank": 16}, 61_440),
    ("fact_tk", {"rank": 16}, 30_976),
    ("fact_tk", {}, 86_528),
    ("adapter_plus", {"rank": 1}, 36_876),
    ("adapter_plus", {}, 165_984),
    ("adapter_plus", {"rank": 32}, 608_640),
    ("houlsby", {}, 313_536),
    ("pfeiffer", {}, 156_768),
    ("moppa", {}, 224_976),
    ("moppa_min", {}, 148_476),
    ("met", {}, 52_352 + 3 * 7_690),  # with the heads of three early exits
]


@cache
def _blueprint() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224", num_classes=10)


@pytest.mark.parametrize(("name", "arguments", "expected"), COUNTS)
def test_count_on_vit_b16(name: str, arguments: dict[str, Any], expected: int) -> None:
    model = copy.deepcopy(_blueprint())
    with torch.device("meta"):
        peft_model = get_peft_model(model, OWN[name].configure(model, arguments))
    trained = {n: p for n, p in peft_model.named_parameters() if p.requires_grad}
    adapter = sum(p.numel() for n, p in trained.items() if "modules_to_save" not in n)
    assert adapter == expected
    assert sum(p.numel() for p in trained.values()) == expected + 7_690


def test_the_table_is_complete() -> None:
    assert len(COUNTS) == 38
    assert set(OWN) - {name for name, _, _ in COUNTS} == {"full", "rlrr", "knn"}
