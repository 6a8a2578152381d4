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
    (name, dict(arguments), expected)
    for name, method in OWN.items()
    for arguments, expected in vars(method.config_class).get("counts_on_vit_b16", ())
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


def test_every_method_says_what_it_counts() -> None:
    assert len(COUNTS) >= 43
    # The neighbours' memory grows with the images; vitune's own tests count it.
    assert {name for name, _, _ in COUNTS} == set(OWN) - {"knn"}
