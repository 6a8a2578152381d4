"""Which of RLRR's parameters weight decay may touch, by identity."""

from __future__ import annotations

import pytest
from peft import get_peft_model
from rlrr_models import random_backbone

from vitune.methods import MethodLayer, RLRRConfig


def undecayed(adapted) -> set[str]:
    """Names of the parameters that their layers spare, found by identity."""
    spared = {
        id(parameter)
        for layer in adapted.modules()
        if isinstance(layer, MethodLayer)
        for name in layer.no_decay
        for parameter in getattr(layer, name).values()
    }
    return {short(name) for name, p in adapted.named_parameters() if id(p) in spared}


def short(name: str) -> str:
    plain = name.replace(".vitune_", ".")
    return plain.removeprefix("base_model.model.").removesuffix(".default")


BLOCK = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
LINEARS = [f"blocks.{block}.{layer}" for block in range(2) for layer in BLOCK]
NORMS = [f"blocks.{block}.norm{number}" for block in range(2) for number in (1, 2)]
SCALED = [*NORMS, "norm", "patch_embed.proj"]
SPARED = {f"{name}.shift" for name in (*LINEARS, *SCALED)} | {f"{name}.scale" for name in SCALED}
SCALES = {f"{name}.{side}" for name in LINEARS for side in ("scale_out", "scale_in")}


def test_shifts_and_norm_and_patch_scales_are_spared_and_nothing_else():
    adapted = get_peft_model(random_backbone(), RLRRConfig())
    assert undecayed(adapted) == SPARED
    trained = {short(n) for n, p in adapted.named_parameters() if p.requires_grad}
    head = {"head.modules_to_save.default.weight", "head.modules_to_save.default.bias"}
    assert trained == SPARED | SCALES | head


def test_scales_around_one_are_spared_too():
    adapted = get_peft_model(random_backbone(), RLRRConfig(residual=False))
    assert undecayed(adapted) == SPARED | SCALES


@pytest.mark.parametrize("name", ["torchvision_vit", "timm_beit"])
def test_attentions_with_weights_of_their_own_spare_the_same(name):
    adapted = get_peft_model(random_backbone(name), RLRRConfig())
    trained = {short(n) for n, p in adapted.named_parameters() if p.requires_grad}
    decayed = {n for n in trained - undecayed(adapted) if "modules_to_save" not in n}
    assert decayed == {n for n in trained if n.endswith((".scale_out", ".scale_in"))}
    assert len(decayed) == 2 * 4 * 2
