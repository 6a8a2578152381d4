"""PEFT's verbs that save, load, copy and send: nothing is lost without a word."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils.hotswap import hotswap_adapter
from peft.utils.save_and_load import get_base_model_state_dict
from safetensors.torch import load_file, save_file
from torch import multiprocessing

from vitune.backbones.sites import head_names
from vitune.errors import AdapterError, VituneError
from vitune.methods import OWN, MethodLayer
from vitune.testing.cases import (
    ON_VIT,
    adapt,
    config_of,
    each_case,
    each_method,
    fresh,
    move,
    refused,
    refuses,
    same,
    trained,
    two_adapters,
)
from vitune.testing.tiny_backbones import images, run

TENSORS = "adapter_model.safetensors"


@each_case
def test_pickled_and_saved_models_are_the_same(method: str, backbone: str, tmp_path: Path) -> None:
    model = trained(method, backbone)
    x, expected = images(backbone), run(model, images(backbone))
    torch.save(model, tmp_path / "model.pt")
    again = (
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
        copy.deepcopy(model),
    )
    for other in again:
        assert same(model, other)
        assert torch.equal(run(other, x), expected)
        with other.disable_adapter():
            assert torch.equal(run(other, x), run(fresh(backbone), x))
        move(other)
        assert not torch.equal(run(other, x), expected)
    assert torch.equal(run(model, x), expected)


def test_every_method_runs_in_a_spawned_process() -> None:
    models = [trained(method, "vit") for method in ON_VIT]
    expected = [run(model, images("vit")) for model in models]
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found = pool.map(_run_elsewhere, models)
    for method, one, other in zip(ON_VIT, found, expected, strict=True):
        assert torch.allclose(torch.tensor(one), other, atol=1e-5), method


def _run_elsewhere(model: PeftModel) -> list[list[float]]:
    return run(model, images("vit")).tolist()


@each_case
@pytest.mark.parametrize("lean", [False, True])
def test_loading_as_peft_users_do(method: str, backbone: str, lean: bool, tmp_path: Path) -> None:
    model, first, second = two_adapters(method, backbone)
    model.save_pretrained(tmp_path)
    x = images(backbone)
    again = PeftModel.from_pretrained(fresh(backbone), tmp_path, low_cpu_mem_usage=lean).eval()
    again.load_adapter(tmp_path / "other", "other", low_cpu_mem_usage=lean)
    assert torch.allclose(run(again, x), first, atol=1e-6)
    again.set_adapter("other")
    assert torch.allclose(run(again, x), second, atol=1e-6)
    assert not any(parameter.is_meta for parameter in again.parameters())


@each_method
def test_missing_tensors_are_named(method: str, tmp_path: Path) -> None:
    model = trained(method, "vit")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    ours = sorted(name for name in tensors if "head" not in name or "vitune_" in name)
    if method in ("linear", "linear_sgd", "ncm"):
        assert not ours
        return
    save_file({k: v for k, v in tensors.items() if k != ours[-1]}, tmp_path / TENSORS)
    with warnings.catch_warnings(record=True) as seen:  # PEFT names some of them too
        warnings.simplefilter("always")
        PeftModel.from_pretrained(fresh("vit"), tmp_path)
    told = [str(one.message) for one in seen]
    assert sum("got a checkpoint without 1 of" in text for text in told) == 1, told
    with pytest.raises(AdapterError, match="Load it without low_cpu_mem_usage"):
        PeftModel.from_pretrained(fresh("vit"), tmp_path, low_cpu_mem_usage=True)


@each_case
def test_state_dicts_load_into_another_model(method: str, backbone: str) -> None:
    model, other = trained(method, backbone), adapt(method, backbone, seed=8)
    state = get_peft_model_state_dict(model)
    found = set_peft_model_state_dict(other, state)
    assert not found.unexpected_keys
    assert torch.equal(run(other, images(backbone)), run(model, images(backbone)))


@each_case
def test_the_base_keeps_its_own_tensors(method: str, backbone: str) -> None:
    model, base = trained(method, backbone), fresh(backbone)
    state = model.base_model.model.state_dict()
    trained_heads = () if refuses(method, "modules_to_save") else head_names(base)
    own, heads = base.state_dict(), tuple(f"{name}." for name in trained_heads)
    kept = model.unload().state_dict()
    assert kept.keys() == own.keys()
    for name in own:  # the head stays as it was trained, as PEFT has it
        assert torch.equal(kept[name], own[name]) != name.startswith(heads), name
    assert len(state) > len(own) or method in ("linear", "linear_sgd", "ncm")


@each_case
def test_the_state_of_the_base_model(method: str, backbone: str) -> None:
    """PEFT's `get_base_model_state_dict`, with shared state and with parameters in slots."""
    model, base = trained(method, backbone), fresh(backbone).state_dict()
    found = get_base_model_state_dict(model)
    assert found.keys() == base.keys()
    assert all(torch.equal(found[name], base[name]) for name in base)
    assert not any(value.requires_grad for value in found.values())
    fresh(backbone).load_state_dict(found)


@each_case
def test_injection_without_a_peft_model(method: str, backbone: str) -> None:
    network = fresh(backbone)
    if refuses(method, "inject_adapter_in_model"):
        with refused(OWN[method].config_class, "inject_adapter_in_model"):
            inject_adapter_in_model(config_of(method), network)
        return
    torch.manual_seed(3)
    network = inject_adapter_in_model(config_of(method), network).eval()
    names = {name for name, value in network.named_parameters() if value.requires_grad}
    like = adapt(method, backbone)
    theirs = {name for name, value in like.named_parameters() if value.requires_grad}
    assert names == {name.removeprefix("base_model.model.") for name in theirs}
    move(network)
    assert len(get_peft_model_state_dict(network, adapter_name="default")) > 0


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # PEFT's, for any method
@each_method
def test_transformers_own_verbs(method: str, tmp_path: Path) -> None:
    backbone = "transformers_vit"
    x = images(backbone)
    model, expected, second = two_adapters(method, backbone)
    model.save_pretrained(tmp_path)
    network = fresh(backbone)
    if refuses(method, "inject_adapter_in_model"):
        with refused(OWN[method].config_class, "inject_adapter_in_model"):
            network.add_adapter(config_of(method))
        network = fresh(backbone)
        with refused(OWN[method].config_class, "inject_adapter_in_model"):
            network.load_adapter(str(tmp_path))
        assert torch.equal(run(network, x), run(fresh(backbone), x))
        return
    network.add_adapter(config_of(method))
    assert any(value.requires_grad for value in network.parameters())
    network = fresh(backbone)
    network.load_adapter(str(tmp_path))
    assert torch.allclose(run(network.eval(), x), expected, atol=1e-6)
    network.load_adapter(str(tmp_path / "other"), "other")
    network.set_adapter("other")
    assert torch.allclose(run(network.eval(), x), second, atol=1e-6)
    network.disable_adapters()
    assert torch.equal(run(network.eval(), x), run(fresh(backbone), x))
    network.enable_adapters()
    # transformers switches layers on, and a linear probe has none
    if method in ("linear", "linear_sgd", "ncm"):
        network.classifier.enable_adapters(enabled=True)
    assert torch.allclose(run(network.eval(), x), second, atol=1e-6)
    if not refuses(method, "modules_to_save"):
        head = network.classifier.modules_to_save["other"]
        assert all(parameter.requires_grad for parameter in head.parameters())
    network.set_adapter("default")
    network.delete_adapter("other")
    network.set_adapter("default")  # PEFT asks layers which is next, and a linear probe has none
    assert torch.allclose(run(network.eval(), x), expected, atol=1e-6)


@each_method
def test_hotswapping_is_refused(method: str, tmp_path: Path) -> None:
    model = trained(method, "vit")
    model.save_pretrained(tmp_path)
    assert refuses(method, "hotswap")
    before = run(model, images("vit"))
    with refused(OWN[method].config_class, "hotswap"):
        hotswap_adapter(model, str(tmp_path), adapter_name="default")
    assert torch.equal(run(model, images("vit")), before)


@each_case
@pytest.mark.parametrize("cast", [False, True])
def test_number_formats_of_a_half_precision_model(method: str, backbone: str, cast: bool) -> None:
    from peft import get_peft_model

    network = fresh(backbone).to(torch.bfloat16)
    model = get_peft_model(network, config_of(method), autocast_adapter_dtype=cast).eval()
    wanted = torch.float32 if cast else torch.bfloat16
    own = [
        value
        for name, value in model.named_parameters()
        if value.requires_grad and "modules_to_save" not in name
    ]
    assert {value.dtype for value in own} <= {wanted}
    assert run(model, images(backbone).bfloat16()).dtype == torch.bfloat16


@each_method
def test_the_files_say_what_to_import(method: str, tmp_path: Path) -> None:
    adapt(method, "vit").save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "import vitune" in card and "pip install vitune" in card
    adapt(method, "vit").save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text().count("# A vitune adapter") == 1
    assert (
        f'"peft_type": "{method.upper()}: import vitune first"'
        in (tmp_path / "adapter_config.json").read_text()
    )


def test_a_reader_without_vitune_is_told_what_to_import(tmp_path: Path) -> None:
    adapt("rlrr", "vit").save_pretrained(tmp_path)
    code = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "KeyError: 'RLRR: import vitune first'"


@each_method
def test_older_files_are_read(method: str, tmp_path: Path) -> None:
    model = trained(method, "vit")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    save_file({k.replace(".vitune_", "."): v for k, v in tensors.items()}, tmp_path / TENSORS)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace(": import vitune first", ""))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = PeftModel.from_pretrained(fresh("vit"), tmp_path).eval()
    assert torch.equal(run(again, images("vit")), run(model, images("vit")))


def test_layers_answer_for_their_weight() -> None:
    for method in ON_VIT:
        for layer in adapt(method, "vit").modules():
            if isinstance(layer, MethodLayer):
                base = layer.get_base_layer()
                assert hasattr(layer, "weight") >= isinstance(base, torch.nn.Linear)
                if not hasattr(base, "weight") and not hasattr(layer, "parameter_name"):
                    assert not hasattr(layer, "weight"), method


def test_a_refusal_is_an_error_of_ours() -> None:
    for method in ON_VIT:
        for verb, reason in OWN[method].config_class.refusals().items():
            assert verb and reason
    assert issubclass(AdapterError, VituneError)
