"""Merged transformers models through save_pretrained and from_pretrained: the same, or refused."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_zoo import MODELS, NUM_CLASSES, VIT
from peft import get_peft_model
from torch import Tensor, nn

from vitune.adapters import attach, card_of, save_adapter
from vitune.backbones import load_backbone, logits_of
from vitune.errors import AdapterError
from vitune.inference import load_run
from vitune.inference.merging import merge_run
from vitune.methods import get_method


def pixels(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))


def trained(model: nn.Module, method: str, arguments: dict[str, Any]) -> Any:
    """The model with an adapter whose values are all random, in evaluation mode."""
    adapted = get_peft_model(model, get_method(method).configure(model, arguments)).eval()
    perturb(adapted)
    return adapted


def perturb(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def output(model: nn.Module, size: int = 32) -> Tensor:
    with torch.no_grad():
        found = model(pixels(size))
    return found.last_hidden_state if "last_hidden_state" in found else logits_of(found)


def tiny(family: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[family][1]().eval()


def vit_without_biases() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**VIT, qkv_bias=False, num_labels=NUM_CLASSES)
    return transformers.ViTForImageClassification(config).eval()


def dinov3() -> nn.Module:
    torch.manual_seed(0)
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**VIT)).eval()


def dinov3_gated() -> nn.Module:
    torch.manual_seed(0)
    options = {"use_gated_mlp": True, "mlp_bias": False, "key_bias": True}
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**VIT, **options)).eval()


KEPT = {
    "vit qkv": (vit_without_biases, "rlrr", {}, {"qkv_bias": True}),
    "vit q alone": (vit_without_biases, "rlrr", {"roles": ("q", "fc1")}, {"qkv_bias": True}),
    "vit arc": (vit_without_biases, "arc", {}, {"qkv_bias": True}),
    "dinov3 k": (dinov3, "rlrr", {}, {"key_bias": True}),
    "dinov3 mlp": (dinov3_gated, "rlrr", {}, {"mlp_bias": True}),
    "dinov3 ssf": (dinov3, "ssf", {}, {"key_bias": True}),
}


@pytest.mark.parametrize("case", KEPT)
def test_biases_are_kept_by_switches_of_the_configuration(case: str, tmp_path: Path) -> None:
    build, method, arguments, switches = KEPT[case]
    model = build()
    config, before = model.config, copy.deepcopy(model.config.to_dict())
    adapted = trained(model, method, arguments)
    expected = output(adapted)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(output(merged), expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(str(tmp_path))
    loaded = type(model).from_pretrained(str(tmp_path)).eval()
    assert torch.equal(output(loaded), output(merged))
    assert {name: getattr(loaded.config, name) for name in switches} == switches
    assert config.to_dict() == before, "the user's configuration is not written to"


def test_a_bias_of_keys_that_changes_nothing_is_dropped(tmp_path: Path) -> None:
    model = tiny("BEiT")
    names = set(model.state_dict())
    adapted = trained(model, "rlrr", {})
    expected = output(adapted)
    merged = adapted.merge_and_unload()
    assert set(merged.state_dict()) == names
    torch.testing.assert_close(output(merged), expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(str(tmp_path))
    assert torch.equal(output(type(model).from_pretrained(str(tmp_path)).eval()), output(merged))


LOST = {
    "CLIP": (r"vision_model\.embeddings\.patch_embedding\.bias", {"patch_embed": False}),
    "Swin": (r"downsample\.reduction\.bias", {"roles": ("attn", "mlp", "norms")}),
    "Swin v2": (r"self\.key\.bias.* and 1 more|self\.key\.bias", {"roles": ("q", "v", "mlp")}),
}


@pytest.mark.parametrize("family", LOST)
def test_a_bias_without_a_place_is_refused_on_saving_and_the_remedies_work(
    family: str, tmp_path: Path
) -> None:
    named, without = LOST[family]
    model = tiny(family)
    adapted = trained(model, "rlrr", {})
    adapted.save_pretrained(str(tmp_path / "adapter"))
    expected = output(adapted)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(output(merged), expected, rtol=1e-4, atol=1e-5)
    kinds = (copy.deepcopy(merged), pickle.loads(pickle.dumps(merged)))
    for either in (merged, *kinds):
        with pytest.raises(AdapterError, match=rf"save_pretrained: got .*{named}.*expected none"):
            either.save_pretrained(str(tmp_path / "merged"))
        assert torch.equal(output(either), output(merged))
    assert not (tmp_path / "merged").exists()
    lost = merged.save_pretrained.biases
    for name, part in merged.named_modules():
        if hasattr(part, "save_pretrained") and any(bias.startswith(name) for bias in lost):
            with pytest.raises(AdapterError, match="from_pretrained would drop them"):
                part.save_pretrained(str(tmp_path / "part"))
    other = trained(tiny(family), "rlrr", without)
    expected = output(other)
    other.merge_and_unload().save_pretrained(str(tmp_path / "other"))
    again = type(tiny(family)).from_pretrained(str(tmp_path / "other")).eval()
    torch.testing.assert_close(output(again), expected, rtol=1e-4, atol=1e-5)


def test_unloading_leaves_saving_alone(tmp_path: Path) -> None:
    adapted = trained(tiny("Swin"), "rlrr", {})
    plain = adapted.unload()
    plain.save_pretrained(str(tmp_path))
    assert torch.equal(output(type(plain).from_pretrained(str(tmp_path)).eval()), output(plain))


@pytest.mark.parametrize("family", ["CLIP", "Swin", "Swin v2", "BEiT"])
def test_vitune_merge_keeps_every_bias(family: str, tmp_path: Path) -> None:
    tiny(family).save_pretrained(str(tmp_path / "base"))
    name = f"hf:{tmp_path / 'base'}"
    backbone = load_backbone(name, num_classes=NUM_CLASSES)
    model = attach(backbone, "rlrr").eval()
    perturb(model)
    expected = output(model)
    classes = tuple("abc")
    facts = {"method": "rlrr", "method_args": {}, "backbone_args": {}, "classes": classes}
    save_adapter(model, tmp_path / "adapter", card_of(model, backbone, **facts))
    assert merge_run(tmp_path / "adapter", tmp_path / "merged") < 1e-5
    loaded = load_run(tmp_path / "merged", device="cpu")
    torch.testing.assert_close(output(loaded.model), expected, rtol=1e-4, atol=1e-5)


def test_the_refusal_is_told_for_the_whole_file(tmp_path: Path) -> None:
    """`torch.save` of the module keeps everything: nothing but from_pretrained loses biases."""
    merged = trained(tiny("Swin"), "rlrr", {}).merge_and_unload()
    buffer = io.BytesIO()
    torch.save(merged.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert any(name.endswith("reduction.bias") for name in state)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict"):
        tiny("Swin").load_state_dict(state)
