"""What weight decay reaches: vitune's rule, and the rule of each method's own code."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.optim import SGD, AdamW

from vitune.errors import VituneError
from vitune.methods import OWN
from vitune.training.optimiser import new_optimiser, parameter_groups

LINEARS = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
HEAD = {"head weight", "head bias"}

NOT_DECAYED: dict[str, set[str]] = {
    # by name there: "bias" and "norm"; the patch embedding's γ and β bear neither
    "rlrr": {f"{linear} shift" for linear in LINEARS}
    | {f"{norm} {part}" for norm in ("norm1", "norm2", "norm") for part in ("scale", "shift")}
    | {"head bias"},
    # every vector
    "ssf": {
        f"{place} {part}"
        for place in (*LINEARS, "norm1", "norm2", "norm", "patch_embed.proj")
        for part in ("scale", "shift")
    }
    | {"head bias"},
    "vpt_deep": {"head bias"},
    # one group of all that is trained
    "arc": set(),
    "lora_mul_vpt_add": set(),
    "lora_add": set(),
    "fact_tk": set(),
    "fact_tt": set(),
    "adaptformer": set(),
}


def adapted(method: str) -> PeftModel:
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3,
        num_classes=5,
    )  # fmt: skip
    return get_peft_model(network, OWN[method].config_class())


def kinds(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    """Place and name of each parameter, blocks and adapters left out."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = set()
    for parameter in parameters:
        name = names[id(parameter)].removeprefix("base_model.").removeprefix("model.")
        name = re.sub(r"blocks\.\d+\.|modules_to_save\.|default\.?|base_layer\.|vitune_", "", name)
        place, _, last = name.strip(".").rpartition(".")
        found.add(f"{place} {last}".strip())
    return found


@pytest.mark.parametrize("method", NOT_DECAYED)
def test_the_authors_rule(method: str) -> None:
    model = adapted(method)
    groups = parameter_groups(model, 0.05, rule="published")
    by_decay: dict[float, list[Any]] = {0.05: [], 0.0: []}
    for group in groups:
        by_decay[group["weight_decay"]] += group["params"]
    assert kinds(model, by_decay[0.0]) == NOT_DECAYED[method]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(by_decay[0.0]) + len(by_decay[0.05]) == len(trained)
    assert "head weight" in kinds(model, by_decay[0.05])


def test_the_rules_differ_in_rlrr_by_the_patch_embedding_alone() -> None:
    model = adapted("rlrr")
    decayed = [
        kinds(model, parameter_groups(model, 0.05, rule=rule)[0]["params"])
        for rule in ("published", "vitune")
    ]
    assert decayed[0] - decayed[1] == {"patch_embed.proj scale", "patch_embed.proj shift"}
    assert not decayed[1] - decayed[0]


@pytest.mark.parametrize("method", ["hta", "bitfit"])
def test_a_method_without_code_has_no_such_rule(method: str) -> None:
    with pytest.raises(VituneError, match=f"--decay-rule: got 'published' for '{method}'"):
        parameter_groups(adapted(method), 0.05, rule="published")


def test_methods_of_peft_have_no_such_rule() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"]))
    assert parameter_groups(model, 0.05)
    model.base_model.model.add_module("head", nn.Linear(4, 2))
    with pytest.raises(VituneError, match="--decay-rule: got 'published' for 'lora', expected"):
        parameter_groups(model, 0.05, rule="published")


def test_the_optimiser_is_adamw_or_sgd_with_momentum() -> None:
    linear = nn.Linear(3, 2)
    assert isinstance(new_optimiser(linear, 0.1, 0.01), AdamW)
    optimiser = new_optimiser(linear, 0.1, 0.5, kind="sgd", momentum=0.8)
    assert isinstance(optimiser, SGD)
    start = {name: value.detach().clone() for name, value in linear.named_parameters()}
    speed = {name: torch.zeros_like(value) for name, value in start.items()}
    expected = {name: value.clone() for name, value in start.items()}
    for gradient in (1.0, -2.0, 0.5):
        for name, value in linear.named_parameters():
            value.grad = torch.full_like(value, gradient)
            decay = 0.5 if name == "weight" else 0.0
            speed[name] = 0.8 * speed[name] + gradient + decay * expected[name]
            expected[name] = expected[name] - 0.1 * speed[name]
        optimiser.step()
    for name, value in linear.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name])
