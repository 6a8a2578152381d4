"""What vitune relies on in PEFT, and how a method from outside joins in."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from outside_methods import write_method
from peft import PeftModel, get_peft_model
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitune
from vitune.errors import VituneError
from vitune.methods import METHODS, OUTSIDE, OWN, HTAConfig, RLRRConfig, get_method
from vitune.methods.authoring import MethodConfig
from vitune.methods.core import plugins
from vitune.methods.core.layer import MethodLayer
from vitune.methods.core.peft_options import AT_FIRST_CONFIG, PREFIX
from vitune.methods.core.tuner import SiteTuner

PEFTS_LIFE_CYCLE = {
    "_check_merge_allowed",
    "_check_target_module_exists",
    "_create_and_replace",
    "_cast_adapter_dtype",
    "_pre_injection_hook",
    "_prepare_adapter_config",
    "_prepare_model",
    "_remap_adapter_state_dict_for_load",
    "_replace_module",
    "_unload_and_optionally_merge",
    "delete_adapter",
    "inject_adapter",
    "merge_adapter",
    "merge_and_unload",
    "set_adapter",
    "set_requires_grad",
}
"""Methods of PEFT's tuner that vitune's replaces; some are private and may change unannounced."""

LAYERS_LIFE_CYCLE = {
    "_all_available_adapter_names",
    "_get_available_adapters",
    "_move_adapter_to_device_of_base_layer",
    "delete_adapter",
    "merge",
    "unmerge",
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)


@pytest.mark.parametrize(
    ("base", "ours", "names"),
    [(BaseTuner, SiteTuner, PEFTS_LIFE_CYCLE), (BaseTunerLayer, MethodLayer, LAYERS_LIFE_CYCLE)],
)
def test_peft_still_calls_what_vitune_replaces(base: type, ours: type, names: set[str]) -> None:
    assert names <= set(vars(ours))
    gone = sorted(name for name in names if not hasattr(base, name))
    assert not gone, f"PEFT no longer has {gone}: see {base.__module__}"
    for name in names:
        theirs = inspect.signature(getattr(base, name)).parameters
        mine = inspect.signature(getattr(ours, name)).parameters
        if not any(kind.kind is kind.VAR_KEYWORD for kind in mine.values()):
            new = sorted(set(theirs) - set(mine) - {"args", "kwargs"})
            assert not new, f"PEFT now gives {name} {new}"


def test_pefts_tables_take_plain_strings_and_its_own_verb_does_not() -> None:
    for name, method in OWN.items():
        kind = name.upper()
        assert kind not in PeftType.__members__, f"PEFT now has a method {kind} of its own"
        assert PEFT_TYPE_TO_CONFIG_MAPPING[kind] is method.config_class
        assert issubclass(PEFT_TYPE_TO_TUNER_MAPPING[kind], SiteTuner)
        assert PEFT_TYPE_TO_PREFIX_MAPPING[kind] == PREFIX
    with pytest.raises((KeyError, ValueError)):  # once this passes, `register` may become one call
        register_peft_method(name="not_in_the_enum", config_cls=RLRRConfig, model_cls=SiteTuner)


@pytest.mark.usefixtures("tables")
def test_a_plugins_method_lives_pefts_whole_life(tmp_path: Path) -> None:
    assert vitune.load_plugin(write_method(tmp_path)) == ("mine",)
    config_class = get_method("mine").config_class
    model = get_peft_model(network(), config_class(blocks=(-1,))).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "scale" in name:
                value.uniform_(-0.5, 0.5)
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    model.save_pretrained(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(network(), str(tmp_path / "adapter")).eval()
    assert torch.equal(again(x), expected) and not torch.equal(network().eval()(x), expected)
    torch.testing.assert_close(again.merge_and_unload()(x), expected)
    assert set(OUTSIDE) == {"mine"} and "mine" not in OWN and METHODS["mine"].ours


@pytest.mark.usefixtures("tables")
def test_registering_and_running_again_is_allowed(tmp_path: Path) -> None:
    file = write_method(tmp_path)
    first = (vitune.load_plugin(file), METHODS["mine"].config_class)
    assert (vitune.load_plugin(file), METHODS["mine"].config_class) == first
    file.write_text(file.read_text().replace('"Mine"', '"Edited"'))
    vitune.load_plugin(file)
    assert METHODS["mine"].title == "Edited"
    assert vitune.register_method(METHODS["mine"].config_class) is METHODS["mine"].config_class


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("rlrr", r"vitune\.methods\.rlrr\.config\.RLRRConfig"),
        ("lora", r"peft\.tuners\.lora\.config\.LoraConfig"),
        ("adalora", r"peft\.tuners\.adalora\.config\.AdaLoraConfig"),
        ("mine", r"vitune_plugin_\w+\.MineConfig"),
    ],
)
def test_a_taken_name_is_refused_naming_both_owners(tmp_path: Path, name: str, owner: str) -> None:
    vitune.load_plugin(write_method(tmp_path))
    (tmp_path / "other").mkdir()
    before = METHODS.get(name)
    expected = rf"got '{name}' of vitune_plugin_\w+\.MineConfig, .*: {owner} has it"
    with pytest.raises(VituneError, match=expected):
        vitune.load_plugin(write_method(tmp_path / "other", name))
    assert METHODS.get(name) is before


@dataclass
class NamelessConfig(MethodConfig):
    """Without a name."""


@dataclass
class ShoutingConfig(HTAConfig):
    """With a name that is none."""

    method = "My Method"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (nn.Linear, "expected a subclass of MethodConfig"),
        (NamelessConfig, r"NamelessConfig without 'method', expected a text"),
        (ShoutingConfig, r"got method 'My Method', expected lower-case letters"),
    ],
)
def test_what_is_no_method_is_refused(given: Any, text: str) -> None:
    with pytest.raises(VituneError, match=text):
        vitune.register_method(given)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("x = 1\n", "without a method, expected a subclass of MethodConfig"),
        ("import nowhere_at_all\n", "which fails: ModuleNotFoundError"),
        ("def (\n", "which fails: SyntaxError"),
        (None, "expected an existing Python file"),
    ],
)
def test_a_file_that_is_no_plugin_is_refused(tmp_path: Path, code: str | None, text: str) -> None:
    file = tmp_path / "plugin.py"
    if code is not None:
        file.write_text(code)
    for _ in range(2):  # a file that failed is tried again
        with pytest.raises(VituneError, match=text):
            vitune.load_plugin(file)


def entry(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    found = (EntryPoint("mine", value, plugins.GROUP),)
    monkeypatch.setattr(plugins, "entry_points", lambda group: found)


@pytest.mark.usefixtures("tables")
def test_an_installed_package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_method(tmp_path, "mine_package")
    monkeypatch.syspath_prepend(tmp_path)
    entry(monkeypatch, "mine_package:MineConfig")
    plugins.load_entry_points()
    assert get_method("mine_package").plugin == {"package": "mine_package:MineConfig"}


@pytest.mark.usefixtures("tables")
def test_a_package_that_is_being_imported_waits_for_the_first_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`import my_method` imports vitune, which must not ask for what is not defined yet."""
    half = ModuleType("half_package")
    half.__spec__ = type("Spec", (), {"_initializing": True})()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "half_package", half)
    entry(monkeypatch, "half_package:MineConfig")
    plugins.load_entry_points()
    RLRRConfig()
    assert len(AT_FIRST_CONFIG) == 1, "still being imported"
    half.__spec__._initializing = False  # type: ignore[union-attr]
    code = write_method(tmp_path, "half").read_text()
    (tmp_path / "whole.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    half.MineConfig = __import__("whole").MineConfig  # type: ignore[attr-defined]
    get_peft_model(network(), half.MineConfig())
    assert "half" in METHODS and not AT_FIRST_CONFIG


def test_a_broken_package_is_passed_over_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    entry(monkeypatch, "nowhere_at_all:Config")
    with pytest.warns(UserWarning, match=r"entry point 'mine' of nowhere_at_all:Config was"):
        plugins.load_entry_points()
