"""Configs: never written to, and every option by which PEFT's users say where an adapter goes."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper
from torch import nn

from vitune.backbones import bare_name, find_sites, head_name
from vitune.errors import BackboneError, VituneError
from vitune.methods import OWN, MethodConfig, MethodLayer, RLRRConfig
from vitune.methods.core.peft_options import OPTIONS
from vitune.testing.cases import (
    CASES,
    ON_VIT,
    adapt,
    config_of,
    each_case,
    each_method,
    fresh,
    layers_of,
    move,
    refuses,
    same,
    trained,
)
from vitune.testing.tiny_backbones import build, images, run

LINEAR_TARGETS = [m for m in ON_VIT if not refuses(m, "roles") and m not in ("ssf", "moppa")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": [0.5]}, r"blocks: got \(0\.5,\), expected whole numbers"),
        ({"blocks": "0"}, r"blocks: got \('0',\), expected whole numbers"),
        ({"layers_to_transform": 1.5}, r"blocks: got \(1\.5,\), expected whole numbers"),
        ({"roles": []}, r"roles: got none, expected at least one"),
        ({"target_modules": "("}, r"target_modules: got '\(' \(missing \), .*expected a regular"),
        ({"exclude_modules": "*"}, r"exclude_modules: got '\*' \(nothing to repeat .*expected a"),
    ],
)
def test_a_place_that_no_network_has_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(VituneError, match=message):
        RLRRConfig(**options)


def test_blocks_may_be_numpys_numbers(tmp_path: Path) -> None:
    """They are written as JSON when the adapter is saved, which is after training."""
    config = RLRRConfig(blocks=np.flatnonzero([True, False, True]))
    assert config == RLRRConfig(blocks=(0, 2)) and RLRRConfig(blocks=np.int64(1)).blocks == (1,)
    config.save_pretrained(str(tmp_path))
    assert PeftConfig.from_pretrained(str(tmp_path)).blocks == (0, 2)


def test_there_are_as_many_cases_as_expected() -> None:
    assert len(CASES) == 29 * 4 - 5
    assert len(ON_VIT) == 29


@each_case
def test_one_config_serves_two_adapters(method: str, backbone: str) -> None:
    config = config_of(method)
    untouched = copy.deepcopy(config)
    torch.manual_seed(5)
    one = get_peft_model(fresh(backbone), config).eval()
    move(one)
    one.add_adapter("other", config)
    torch.manual_seed(5)
    two = get_peft_model(fresh(backbone), config_of(method)).eval()
    move(two)
    two.add_adapter("other", config_of(method))
    assert config == untouched
    assert same(one, two)
    for name in ("default", "other"):
        for model in (one, two):
            model.set_adapter(name)
        assert torch.equal(run(one, images(backbone)), run(two, images(backbone)))
        assert one.peft_config[name] == two.peft_config[name]
        assert one.peft_config[name] is not config


@each_case
def test_one_config_serves_two_models(method: str, backbone: str) -> None:
    config = config_of(method)
    untouched = copy.deepcopy(config)
    get_peft_model(fresh(backbone), config)
    assert config == untouched
    other = "vit" if backbone == "plain_stack" else "plain_stack"
    found = []
    for used in (config, config_of(method)):
        torch.manual_seed(6)
        model = get_peft_model(fresh(other), used).eval()
        move(model)
        found.append(model)
    assert same(*found)
    assert torch.equal(run(found[0], images(other)), run(found[1], images(other)))


@each_case
def test_blocks_go_by_the_name_that_peft_gives_them(method: str, backbone: str) -> None:
    if refuses(method, "blocks"):
        with pytest.raises(VituneError, match=r"blocks: got .*Leave it out"):
            config_of(method, layers_to_transform=[1])
        return
    ours, theirs = (
        adapt(method, backbone, blocks=(1,)),
        adapt(method, backbone, layers_to_transform=[1]),
    )
    assert same(ours, theirs)
    assert len(layers_of(ours)) < len(layers_of(adapt(method, backbone))) or method == "vpt_shallow"
    with pytest.raises(VituneError, match=r"layers_to_transform: got .* beside blocks"):
        config_of(method, blocks=(0,), layers_to_transform=1)


@each_case
def test_a_regular_expression_and_a_suffix_name_the_same(method: str, backbone: str) -> None:
    names = _places(method, backbone)
    if refuses(method, "target_modules"):
        with pytest.raises(VituneError, match=r"target_modules: got .*expected none"):
            config_of(method, target_modules=["anything"])
        return
    # MoPPA needs one of the norms that it filters before.
    one = next(n for n in sorted(names) if method != "moppa" or "norm1" in n or "_before" in n)
    exact = adapt(method, backbone, target_modules=[one])
    regex = adapt(method, backbone, target_modules=one.replace(".", r"\."))
    assert same(exact, regex)
    assert _places_of(exact) == {one}
    last = one.rpartition(".")[2]
    suffix = adapt(method, backbone, target_modules=[last])
    by_suffix = {name for name in names if name.endswith(f".{last}")}
    assert _places_of(suffix) == ({last} if last in names else by_suffix)
    with pytest.raises(BackboneError, match=r"target_modules: got \['nowhere'\], where"):
        adapt(method, backbone, target_modules=[one, "nowhere"])


@each_case
def test_modules_can_be_left_out(method: str, backbone: str) -> None:
    names = _places(method, backbone)
    if refuses(method, "exclude_modules"):
        with pytest.raises(VituneError, match=r"exclude_modules: got .*expected none"):
            config_of(method, exclude_modules=["anything"])
        return
    one = sorted(names)[-1]
    if method == "vpt_shallow":  # prompts then enter at the next block, not at none
        assert one not in _places_of(adapt(method, backbone, exclude_modules=[one]))
        return
    model = adapt(method, backbone, exclude_modules=[one])
    assert _places_of(model) == names - {one}
    assert model.peft_config["default"].exclude_modules == (one,)
    with pytest.warns(UserWarning, match="excludes nothing"):
        adapt(method, backbone, exclude_modules=["nowhere"])
    with pytest.raises(BackboneError, match=r"expected something left"):
        adapt(method, backbone, exclude_modules=".*")


@each_case
def test_all_linear_means_the_linear_layers_of_the_blocks(method: str, backbone: str) -> None:
    if refuses(method, "all-linear"):
        with pytest.raises(VituneError, match="all-linear: got 'all-linear', expected none"):
            config_of(method, target_modules="all-linear")
        return
    model = adapt(method, backbone, target_modules="all-linear")
    base = fresh(backbone)
    found = {base.get_submodule(name) for name in _places_of(model)}
    assert found and all(isinstance(module, nn.Linear) for module in found)
    if not refuses(method, "roles"):
        linears = {
            site.name
            for site in find_sites(base)
            if site.role != "head" and isinstance(base.get_submodule(site.name), nn.Linear)
        }
        assert _places_of(model) == linears


@each_case
def test_a_narrowed_adapter_comes_back_as_it_was(method: str, backbone: str, tmp_path) -> None:
    names = sorted(_places(method, backbone))
    options = [
        options
        for options in (
            {"target_modules": [n for n in names if "norm1" in n or "_before" in n] or names[:1]},
            {"exclude_modules": names[-1:]},
            {"target_modules": "all-linear"},
            {"layers_to_transform": [1]},
        )
        if not _refused_options(method, options)
    ]
    for index, given in enumerate(options):
        model = trained(method, backbone, **given)
        model.save_pretrained(tmp_path / str(index))
        again = PeftModel.from_pretrained(fresh(backbone), tmp_path / str(index)).eval()
        assert torch.equal(run(again, images(backbone)), run(model, images(backbone)))
        assert _places_of(again) == _places_of(model)
    expected = {"linear": 0, "linear_sgd": 0, "ncm": 0, "knn": 1, "partial": 3, "met": 2}
    assert len(options) == expected.get(method, 4 - refuses(method, "all-linear"))


@each_method
def test_a_norm_may_be_trained_whole(method: str) -> None:
    if refuses(method, "modules_to_save"):
        with pytest.raises(VituneError, match=r"modules_to_save: got .*expected none"):
            adapt(method, "vit", modules_to_save=["norm", "head"])
        return
    model = trained(method, "vit", modules_to_save=["norm", "head"])
    network = model.get_base_model()
    assert isinstance(network.norm, ModulesToSaveWrapper)
    assert isinstance(network.head, ModulesToSaveWrapper)
    assert type(network.norm.original_module).__name__ == "LayerNorm"
    assert "norm" not in _places_of(model)
    before = run(model, images("vit"))
    with model.disable_adapter():
        assert torch.equal(run(model, images("vit")), run(fresh("vit"), images("vit")))
    assert torch.equal(run(model, images("vit")), before)


@each_method
def test_modules_to_save_are_looked_up(method: str) -> None:
    if refuses(method, "modules_to_save"):
        return  # refused whatever it names, see above
    with pytest.raises(BackboneError, match=r"modules_to_save: got 'haed', .*Did you mean head"):
        adapt(method, "vit", modules_to_save=["haed"])
    with pytest.warns(UserWarning, match="leaves out the classifier head, which stays frozen"):
        adapt(method, "vit", modules_to_save=["patch_embed"])


@each_method
def test_one_module_to_save_may_be_a_string(method: str) -> None:
    if refuses(method, "modules_to_save"):
        with pytest.raises(VituneError, match=r"modules_to_save: got \['head'\], expected none"):
            adapt(method, "vit", modules_to_save="head")
        return
    found, listed = (adapt(method, "vit", modules_to_save=head) for head in ("head", ["head"]))
    assert found.peft_config["default"].modules_to_save == ["head"]
    assert same(found, listed)
    with pytest.raises(BackboneError, match=r"modules_to_save: got 'haed', .*Did you mean head"):
        adapt(method, "vit", modules_to_save="haed")


@each_method
def test_a_module_inside_a_block_may_be_trained_whole(method: str, tmp_path) -> None:
    if refuses(method, "modules_to_save"):
        return  # refused whatever it names, see above
    inside = "blocks.0.attn" if method in ("moppa", "layernorm") else "blocks.0.norm1"
    model = trained(method, "vit", modules_to_save=[inside, "head"])
    wrapped = [name for name, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)]
    assert {bare_name(name) for name in wrapped} == {inside, "head"}
    expected = run(model, images("vit"))
    with model.disable_adapter():
        assert torch.equal(run(model, images("vit")), run(fresh("vit"), images("vit")))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(fresh("vit"), tmp_path).eval()
    assert torch.equal(run(again, images("vit")), expected)


def test_ends_of_words_are_not_names() -> None:
    with pytest.warns(UserWarning, match="leaves out the classifier head"):
        model = adapt("rlrr", "vit", modules_to_save=["norm"])
    names = {name for name, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)}
    ends = [name for name, _ in fresh("vit").named_modules() if name.endswith("norm")]
    assert {bare_name(name) for name in names} == {n for n in ends if n.split(".")[-1] == "norm"}
    assert len(names) < len(ends)  # fc_norm and q_norm end in norm and are others


def test_declared_options_are_the_ones_that_are_refused() -> None:
    values = {
        "roles": ("fc1",),
        "blocks": (0,),
        "target_modules": ["fc1"],
        "exclude_modules": ["fc1"],
        "all-linear": "all-linear",
    }
    assert values.keys() == OPTIONS
    for method in OWN:
        for option, value in values.items():
            field = "target_modules" if option == "all-linear" else option
            if refuses(method, option):
                with pytest.raises(VituneError, match="Leave it out"):
                    config_of(method, **{field: value})
            else:
                assert getattr(config_of(method, **{field: value}), field) is not None


def test_every_field_of_a_config_is_documented_by_its_class() -> None:
    for method in OWN.values():
        names = {field.name for field in dataclasses.fields(method.config_class)}
        assert {"roles", "blocks", "target_modules", "exclude_modules"} <= names
        assert issubclass(method.config_class, MethodConfig)


def _places(method: str, backbone: str) -> set[str]:
    return _places_of(adapt(method, backbone))


def _places_of(model: BaseTuner) -> set[str]:
    """Names, in the bare network, of the modules that an adapter acts on."""
    network = model.get_base_model()
    found = set()
    for name, module in network.named_modules():
        if isinstance(module, MethodLayer):
            found.add(name.partition(".parametrizations")[0].replace(".base_layer", ""))
    return found - {""}


def _refused_options(method: str, options: dict) -> bool:
    names = {"layers_to_transform": "blocks"}
    if options.get("target_modules") == "all-linear" and refuses(method, "all-linear"):
        return True
    return any(refuses(method, names.get(name, name)) for name in options)


def test_a_head_that_is_not_found_is_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = build("vit")
            self.vit.head = nn.Identity()
            self.out = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.vit(x))

    assert head_name(Own()) is None
    for method in OWN:
        if method in ("linear", "linear_sgd", "ncm"):
            continue
        if refuses(method, "modules_to_save"):  # a layer in the classifier's place needs one
            with pytest.raises(BackboneError, match="got"):
                get_peft_model(Own(), config_of(method))
            continue
        with pytest.warns(UserWarning, match=r"no classifier was found; .*out stay frozen\."):
            get_peft_model(Own(), config_of(method))
        model = get_peft_model(Own(), config_of(method, modules_to_save=["out"]))
        assert any(
            "out.modules_to_save" in n for n, p in model.named_parameters() if p.requires_grad
        )
        get_peft_model(Own(), config_of(method, modules_to_save=[]))
    with pytest.raises(BackboneError, match="expected a classifier to train"):
        get_peft_model(fresh("vit"), config_of("linear", modules_to_save=[]))
