"""PEFT's functions for several adapters on one model."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model

from vitune.errors import AdapterError
from vitune.methods import METHODS
from vitune.testing.cases import (
    adapt,
    config_of,
    each_case,
    each_method,
    fresh,
    move,
    refused,
    refuses,
    trained,
    two_adapters,
)
from vitune.testing.tiny_backbones import images, run


@each_case
def test_adapters_are_switched_disabled_and_deleted(method: str, backbone: str) -> None:
    model, first, second = two_adapters(method, backbone)
    x = images(backbone)
    assert not torch.equal(first, second)
    for _ in range(2):
        model.set_adapter("other")
        assert torch.equal(run(model, x), second)
        model.set_adapter("default")
        assert torch.equal(run(model, x), first)
    with model.disable_adapter():
        assert torch.equal(run(model, x), run(fresh(backbone), x))
    model.set_adapter("other")
    model.delete_adapter("default")
    assert torch.equal(run(model, x), second)
    model.add_adapter("third", config_of(method))
    assert torch.equal(run(model, x), second)
    assert not any("default" in name for name, _ in model.named_parameters())


@each_case
def test_only_the_active_adapter_trains(method: str, backbone: str) -> None:
    model, _, _ = two_adapters(method, backbone)
    own: dict[str, set[str]] = {"default": set(), "other": set()}
    for name in own:
        model.set_adapter(name)
        own[name] = {key for key, value in model.named_parameters() if value.requires_grad}
        assert own[name] and all(f".{name}" in key for key in own[name])
    assert {key.replace(".other", ".default") for key in own["other"]} == own["default"]
    model.set_adapter("default")
    model.set_requires_grad("default", requires_grad=False)
    left = {key for key, value in model.named_parameters() if value.requires_grad}
    assert not {key for key in left if "modules_to_save" not in key}
    model.set_requires_grad(["default", "other"])
    both = {key for key, value in model.named_parameters() if value.requires_grad}
    assert {key for key in both if "modules_to_save" not in key} == {
        key for key in own["default"] | own["other"] if "modules_to_save" not in key
    }


@each_method
def test_two_adapters_with_their_own_classifier_are_not_active_together(method: str) -> None:
    model, first, _ = two_adapters(method, "vit")
    if refuses(method, "modules_to_save"):
        model.base_model.set_adapter(["default", "other"])
        return
    wanted = r"set_adapter: got .*own 'head', which 'default' and 'other' each train whole"
    with pytest.raises(AdapterError, match=wanted):
        model.base_model.set_adapter(["default", "other"])
    assert torch.equal(run(model, images("vit")), first)


@each_method
def test_the_status_of_model_and_layers(method: str) -> None:
    model, _, _ = two_adapters(method, "vit")
    model.set_adapter("other")
    status = model.get_model_status()
    assert status.peft_types == dict.fromkeys(("default", "other"), method.upper())
    assert status.active_adapters == ["other"] and status.available_adapters == ["default", "other"]
    assert status.num_adapter_layers == len(model.get_layer_status()) > 0
    assert status.trainable_params == model.get_nb_trainable_parameters()[0] > 0
    with model.disable_adapter():
        assert model.get_model_status().enabled is False


@each_case
def test_merging_and_unmerging(method: str, backbone: str) -> None:
    model, first, second = two_adapters(method, backbone)
    x = images(backbone)
    if refuses(method, "merge"):
        for verb in (model.merge_adapter, model.merge_and_unload):
            with pytest.raises(AdapterError, match="merge"):
                verb()
        assert torch.equal(run(model, x), first)
        return
    for name, expected in (("default", first), ("other", second)):
        model.set_adapter(name)
        model.merge_adapter(adapter_names=[name])
        assert torch.allclose(run(model, x), expected, atol=1e-4)
        model.unmerge_adapter()
        assert torch.allclose(run(model, x), expected, atol=1e-6)
    model.set_adapter("default")
    named = copy.deepcopy(model).merge_and_unload(adapter_names=["other"])
    assert torch.allclose(run(named, x), second, atol=1e-4)
    merged = model.merge_and_unload()
    assert torch.allclose(run(merged, x), first, atol=1e-4)


@each_case
def test_combining_adapters(method: str, backbone: str) -> None:
    model, first, _ = two_adapters(method, backbone)
    verb = model.base_model.add_weighted_adapter
    if refuses(method, "add_weighted_adapter"):
        with refused(METHODS[method].config_class, "add_weighted_adapter"):
            verb(["default", "other"], [0.5, 0.5], "mixed")
        assert torch.equal(run(model, images(backbone)), first)
        return
    verb(["default", "other"], [1.0, 0.0], "mixed", combination_type="linear")
    model.set_adapter("mixed")
    assert torch.allclose(run(model, images(backbone)), first, atol=1e-4)
    with pytest.raises(ValueError, match=r"combination_type: got 'svd', expected"):
        verb(["default", "other"], [0.5, 0.5], "again", combination_type="svd")


@each_method
def test_one_adapter_for_each_image_is_refused(method: str) -> None:
    model, first, _ = two_adapters(method, "vit")
    x = images("vit")
    assert refuses(method, "adapter_names")
    with pytest.raises(AdapterError, match=r"adapter_names: got .*expected none"):
        model(x, adapter_names=["default", "other", "__base__"])
    assert torch.equal(run(model, x), first)


@each_method
def test_mixing_with_methods_of_peft_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=r"[Mm]ixed|not supported"):
        get_peft_model(fresh("vit"), config_of(method), mixed=True)
    assert refuses(method, "mixed")


@each_case
def test_deeper_adapters_add_up_on_what_is_there(method: str, backbone: str) -> None:
    """A second adapter starts from the frozen network, whatever the first one learned."""
    model = trained(method, backbone)
    torch.manual_seed(3)
    model.add_adapter("other", config_of(method))
    model.set_adapter("other")
    again = adapt(method, backbone)
    names = dict(again.named_parameters())
    for name, value in model.named_parameters():
        if value.requires_grad and "modules_to_save" not in name:
            assert torch.equal(value, names[name.replace(".other", ".default")]), name
    move(model, seed=5)
    assert torch.isfinite(run(model, images(backbone))).all()
