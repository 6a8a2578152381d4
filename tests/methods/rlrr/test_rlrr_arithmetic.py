"""Arithmetic of trained RLRR adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from rlrr_models import images, outputs, random_adapter, random_backbone, shake
from safetensors.torch import load_file

from vitune.errors import AdapterError, VituneError
from vitune.methods import AdapterState, BitFitConfig, MethodLayer, RLRRConfig, combine_states

VARIANTS = {
    "paper": {},
    "rank 3": {"rank": 3},
    "one side": {"sides": "out"},
    "no residual": {"residual": False},
    "one side, no residual": {"residual": False, "sides": "in"},
    "without W": {"hadamard": False, "rank": 2},
    "q and v": {"roles": ("q", "v", "norms"), "residual": False},
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:The classifier is the first adapter's"),
    pytest.mark.filterwarnings(
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT reads it
    ),
]


def two_adapters(name: str = "timm_vit", **options: object) -> PeftModel:
    adapted = random_adapter(random_backbone(name), **options)
    adapted.add_adapter("second", RLRRConfig(**options))
    shake(p for n, p in adapted.named_parameters() if "second" in n)
    return adapted.eval()


def layers(adapted: PeftModel) -> dict[str, MethodLayer]:
    return {n: m for n, m in adapted.named_modules() if isinstance(m, MethodLayer)}


def changes(layer: MethodLayer, adapter: str) -> dict[str, torch.Tensor]:
    """What `adapter` adds to the base layer's weight and bias."""
    base = layer.base_tensors()
    return {
        key: value - (0 if base[key] is None else base[key])
        for key, value in layer.adapt(base, adapter).items()
        if value is not None
    }


def states(adapted: PeftModel) -> list[AdapterState]:
    """Both adapters as PEFT would write them."""
    return [state(adapted, name) for name in ("default", "second")]


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, -0.5), (1.0, 1.0)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sum_adds_the_changes_exactly(variant, weights):
    adapted = two_adapters(**VARIANTS[variant])
    adapted.add_weighted_adapter(["default", "second"], weights, "both", how="sum")
    for name, layer in layers(adapted).items():
        first, second, both = (changes(layer, each) for each in ("default", "second", "both"))
        for key, value in both.items():
            expected = weights[0] * first[key] + weights[1] * second[key]
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=2e-6, msg=name + key)


@pytest.mark.parametrize("name", ["torchvision_vit", "timm_beit", "timm_resnext", "timm_swin"])
def test_a_sum_on_other_backbones(name):
    adapted = two_adapters(name)
    adapted.base_model.add_weighted_adapter(["default", "second"], [0.5, -1.0], "both", "sum")
    assert adapted.peft_config["both"].rank == 2
    for layer in layers(adapted).values():
        first, second, both = (changes(layer, each) for each in ("default", "second", "both"))
        for key, value in both.items():
            expected = 0.5 * first[key] - second[key]
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=2e-6)


def test_composing_keeps_the_rank_and_adds_the_vectors():
    adapted = two_adapters(rank=2)
    adapted.add_weighted_adapter(["default", "second"], [0.7, -0.2], "both")
    assert adapted.peft_config["both"].rank == 2
    for layer in layers(adapted).values():
        for part in layer.adapter_layer_names:
            values = getattr(layer, part)
            centre = 1.0 if part == "scale" else 0.0
            first, second, both = (values[each] - centre for each in ("default", "second", "both"))
            torch.testing.assert_close(both, 0.7 * first - 0.2 * second, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("how", ["compose", "sum"])
def test_all_of_one_adapter_is_that_adapter(variant, how):
    adapted = two_adapters(**VARIANTS[variant])
    x = images()
    expected = outputs(adapted, x)
    adapted.add_weighted_adapter(["default", "second"], [1.0, 0.0], "same", how)
    adapted.add_weighted_adapter(["default"], [1.0], "alone", how)
    for name in ("same", "alone"):
        adapted.set_adapter(name)
        torch.testing.assert_close(outputs(adapted, x), expected, rtol=1e-4, atol=1e-5)


def test_subtracting_an_adapter_from_itself_leaves_the_backbone():
    adapted = two_adapters(residual=False)
    adapted.add_weighted_adapter(["default", "default"], [1.0, -1.0], "none", "sum")
    for layer in layers(adapted).values():
        for change in changes(layer, "none").values():
            torch.testing.assert_close(change, torch.zeros_like(change), rtol=0, atol=1e-6)


def test_the_combination_is_not_active_and_trains_merges_and_saves(tmp_path: Path):
    adapted = two_adapters()
    x = images()
    before = outputs(adapted, x)
    adapted.add_weighted_adapter(["default", "second"], [0.6, 0.4], "both", "sum")
    torch.testing.assert_close(outputs(adapted, x), before, rtol=0, atol=0)
    assert adapted.active_adapters == ["default"]
    trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert trained and not any("both" in name or "second" in name for name in trained)
    adapted.set_adapter("both")
    expected = outputs(adapted, x)
    assert all("both" in n for n, p in adapted.named_parameters() if p.requires_grad)
    adapted.save_pretrained(tmp_path, selected_adapters=["both"])
    assert json.loads((tmp_path / "both" / "adapter_config.json").read_text())["rank"] == 2
    base = adapted.unload()
    reloaded = PeftModel.from_pretrained(base, tmp_path / "both").eval()
    torch.testing.assert_close(outputs(reloaded, x), expected, rtol=0, atol=0)
    merged = reloaded.merge_and_unload()
    assert (outputs(merged, x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("how", ["compose", "sum"])
def test_states_from_files_combine_as_adapters_in_a_model(how, tmp_path: Path):
    adapted = two_adapters()
    adapted.save_pretrained(tmp_path)
    adapted.add_weighted_adapter(["default", "second"], [0.7, 0.3], "both", how)
    folders = (tmp_path, tmp_path / "second")
    read = [
        AdapterState(
            PeftConfig.from_pretrained(folder), load_file(folder / "adapter_model.safetensors")
        )
        for folder in folders
    ]
    combined = combine_states(read, [0.7, 0.3], how)
    expected = adapted.base_model.model.blocks[0].attn.qkv.scale_out["both"]
    name = "base_model.model.blocks.0.attn.qkv.vitune_scale_out"
    torch.testing.assert_close(combined.tensors[name], expected)
    assert combined.tensors.keys() == read[0].tensors.keys()
    assert combined.config.rank == (2 if how == "sum" else 1)
    older = [
        AdapterState(each.config, {n.replace("vitune_", ""): t for n, t in each.tensors.items()})
        for each in read
    ]
    again = combine_states(older, [0.7, 0.3], how)
    assert again.tensors.keys() == combined.tensors.keys()
    assert all(torch.equal(again.tensors[key], combined.tensors[key]) for key in again.tensors)


def test_the_head_is_mixed_where_the_weights_sum_to_one():
    first, second = states(two_adapters())
    name = "base_model.model.head.weight"
    mixed = combine_states([first, second], [0.7, 0.3]).tensors[name]
    torch.testing.assert_close(mixed, 0.7 * first.tensors[name] + 0.3 * second.tensors[name])
    kept = combine_states([first, second], [0.7, 0.3], head="first").tensors[name]
    assert torch.equal(kept, first.tensors[name])


@pytest.mark.filterwarnings("default")
def test_else_the_head_is_the_first_adapters_with_notice():
    first, second = states(two_adapters())
    name = "base_model.model.head.weight"
    with pytest.warns(UserWarning, match="first adapter's, not an average: weights that sum to 2"):
        assert combine_states([first, second], [1, 1]).tensors[name] is first.tensors[name]
    other = {**second.tensors, name: torch.zeros(7, 16)}
    with pytest.warns(UserWarning, match="heads of shapes"):
        combined = combine_states([first, AdapterState(second.config, other)], [0.5, 0.5])
    assert combined.tensors[name] is first.tensors[name]
    with pytest.raises(AdapterError, match=r"head: got 'mix' with weights that sum to 0\.5"):
        combine_states([first, second], [1, -0.5], head="mix")


def state(adapted: PeftModel, name: str = "default") -> AdapterState:
    tensors = get_peft_model_state_dict(adapted, adapter_name=name)
    return AdapterState(adapted.peft_config[name], tensors)


def state_of(name: str = "timm_vit", **options: object) -> AdapterState:
    return state(random_adapter(random_backbone(name), **options))


def test_all_differences_are_listed():
    first = state_of(rank=2)
    second = state_of(roles=("mlp", "q"), shift=False, blocks=(0,), norms=None)
    with pytest.raises(AdapterError) as caught:
        combine_states([first, second], [1, 1])
    message = str(caught.value)
    for part in (
        "shift [True, False]",
        "norms ['scale_shift', None]",
        "rank [2, 1]",
        "roles [None, ['fc1', 'fc2', 'q']]",
        "layers that adapter 2 lacks (",
        "blocks.0.attn.proj",
        "and 5 more",
        "shapes (",
        "attn.qkv.vitune_scale_out [(48,), (16,)]",
    ):
        assert part in message, part
    assert "\n" not in message and "adapter 1 lacks" not in message


def test_other_backbones_and_methods_are_refused():
    with pytest.raises(AdapterError, match=r"layers that adapter 1 lacks .*layers that adapter 2"):
        combine_states([state_of(), state_of("hf_vit")], [1, 1], "sum")
    narrow, tall = random_adapter(random_backbone()), random_adapter(random_backbone(depth=3))
    with pytest.raises(AdapterError, match=r"layers that adapter 1 lacks .*blocks\.2"):
        combine_states([state(narrow), state(tall)], [1, 1])
    other = AdapterState(BitFitConfig(), {})
    with pytest.raises(AdapterError, match=r"differ in method \['RLRR', 'BITFIT'\]"):
        combine_states([state(narrow), other], [1, 1])
    with pytest.raises(AdapterError, match="combine: got method 'bitfit'"):
        BitFitConfig().combined([other], [1.0], "sum", "auto")


def test_ranks_may_differ_in_a_sum_only():
    first, second = state_of(rank=1), state_of(rank=3)
    assert combine_states([first, second], [1, 1], "sum").config.rank == 4
    with pytest.raises(AdapterError, match=r"rank \[1, 3\]"):
        combine_states([first, second], [1, 1], "compose")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["default", "secnd"], [1, 1], "both"), "Did you mean second"),
        ((["default", "second"], [1, 1], "second"), "adapter_name: got 'second'"),
        ((["default", "second"], [1, 1], "a.b"), "adapter_name: got 'a.b', expected a plain"),
        ((["default", "second"], [1, 1], "copy"), "adapter_name: got 'copy', expected a plain"),
        ((["default", "second"], [1], "both"), "weights: got 1 for 2 adapters"),
        (([], [], "both"), "weights: got 0 for 0 adapters"),
        ((["default"], [float("nan")], "both"), "expected finite numbers"),
        ((["default"], [1], "both", "product"), "how: got 'product'"),
        ((["default"], [1], "both", "sum", "last"), "head: got 'last'"),
    ],
)
def test_wrong_arguments_are_refused_and_add_nothing(arguments, message):
    adapted = two_adapters()
    with pytest.raises(VituneError, match=message):
        adapted.add_weighted_adapter(*arguments)
    assert set(adapted.peft_config) == {"default", "second"}
