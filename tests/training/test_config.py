"""Settings: every wrong one is named on one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision.models as zoo
import yaml
from transformers import ViTConfig, ViTForImageClassification

from vitune.errors import VituneError
from vitune.ops import cpu_multiplies_bf16
from vitune.training import TrainConfig, Tuning, fit, read_yaml
from vitune.training.precision import (
    BF16_WIDTH,
    emulation_notice,
    network_width,
    resolve_precision,
)
from vitune.training.settling import new_settings


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"data": "x", "epoch": 3}, r"epoch: unknown option\. Did you mean epochs"),
        ({}, "data: got nothing, expected a value"),
        ({"data": " "}, "data: got ' ', expected a name"),
        ({"data": "x", "epochs": 0}, "epochs: got 0, input should be greater than or equal to 1"),
        ({"data": "x", "lr": -1}, "lr: got -1"),
        ({"data": "x", "precision": "int8"}, "precision: got 'int8', input should be 'auto'"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, object], text: str) -> None:
    with pytest.raises(VituneError, match=text) as caught:
        TrainConfig.make(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["photos/", {"data": "photos/"}])
def test_fit_takes_settings_by_name_alone(given: Any) -> None:
    with pytest.raises(VituneError, match=r"fit: got .*photos/.*, expected a TrainConfig, or key"):
        fit(given)


def test_data_may_be_a_path(tmp_path: Path) -> None:
    assert TrainConfig.make({"data": tmp_path}).data == str(tmp_path)


def test_arguments_of_a_method_may_be_numpys_numbers() -> None:
    given = {"blocks": np.arange(2), "rank": np.int64(4), "exits": (np.int32(1), 2)}
    config = TrainConfig.make({"data": "x", "method_args": given, "objective_args": given})
    plain = {"blocks": [0, 1], "rank": 4, "exits": [1, 2]}
    assert yaml.safe_load(yaml.safe_dump(config.model_dump()))["method_args"] == plain
    assert config.objective_args == plain


def test_a_file_is_read_and_options_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: photos\nepochs: 7\nmethod_args: {rank: 2}\n")
    config = TrainConfig.read(file, {"epochs": 9})
    assert (config.data, config.epochs, config.method_args) == ("photos", 9, {"rank": 2})
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert TrainConfig.read(file) == config


def test_what_chooses_on_validation_gives_way_to_a_refit(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: photos\nselect: best\npatience: 3\nchoose_best: true\n")
    assert TrainConfig.read(file).patience == 3
    config = TrainConfig.read(file, {"refit": True})
    assert (config.select, config.patience, config.choose_best) == ("auto", None, None)


@pytest.mark.parametrize(
    ("content", "text"),
    [("- a\n- b\n", "expected 'key: value' lines"), ("a: [", "expected YAML")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(VituneError, match=text):
        TrainConfig.read(file)
    with pytest.raises(VituneError, match="expected an existing YAML file"):
        TrainConfig.read(tmp_path / "absent.yaml")


def test_auto_precision_is_a_stated_rule() -> None:
    assert resolve_precision("fp32", "cpu", 768) == "fp32"
    assert resolve_precision("auto", "cpu", BF16_WIDTH - 1) == "fp32"
    assert resolve_precision("auto", "cpu", 768) == ("bf16" if cpu_multiplies_bf16() else "fp32")


def test_a_number_format_that_the_processor_emulates_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert emulation_notice("fp32", "cpu") == ""
    monkeypatch.setattr("vitune.training.precision.slowdown", lambda *_: 61.4)
    expected = "bf16: this processor has no instructions for it, and a matrix product takes 61 "
    assert emulation_notice("bf16", "cpu").startswith(expected)
    monkeypatch.setattr("vitune.training.precision.slowdown", lambda *_: 0.6)
    assert emulation_notice("bf16", "cpu") == ""


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("torchvision vit_b_16", 768),
        ("torchvision resnet50", 1024),
        ("torchvision swin_t", 768),
        ("timm vit_base_patch16_224", 768),
        ("timm vit_tiny_patch16_224", 192),
        ("timm resnet50", 1024),
        ("timm convnext_tiny", 768),
        ("hf ViT", 768),
        ("unknown", 0),
    ],
)
def test_precision_follows_the_layers_shapes_not_their_names(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, _, model = name.partition(" ")
    with torch.device("meta"):
        network = {
            "torchvision": lambda: zoo.get_model(model, weights=None),
            "timm": lambda: timm.create_model(model),
            "hf": lambda: ViTForImageClassification(ViTConfig()),
            "unknown": lambda: torch.nn.Linear(512, 512),
        }[library]()
    assert network_width(network) == width
    monkeypatch.setattr("vitune.training.precision.cpu_multiplies_bf16", lambda: True)
    expected = "bf16" if width >= BF16_WIDTH else "fp32"
    assert resolve_precision("auto", "cpu", network_width(network)) == expected


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("epochs: 3\nlr: 0.1\nepochs: 5\n", "the key 'epochs' twice.*line 3"),
        ("method_args: {rank: 2, rank: 4}\n", "the key 'rank' twice"),
        ("3: 4\n", "got the key 3"),
    ],
)
def test_a_key_that_stands_twice_or_is_no_name_is_refused(
    tmp_path: Path, text: str, match: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(VituneError, match=match):
        TrainConfig.read(file)
    merged = "a: &a {epochs: 3}\nb: {<<: *a, epochs: 5}\n"
    file.write_text(merged)
    assert read_yaml(file)["b"] == {"epochs": 5}


def test_fp16_on_a_cpu_is_refused() -> None:
    """accelerate would compute in fp32, and the run would say fp16."""
    asked = TrainConfig.make({"data": "demo:digits", "precision": "fp16", "device": "cpu"})
    with pytest.raises(VituneError, match=r"--precision: got 'fp16' on a CPU, .* Use fp32\."):
        new_settings(asked, {})


def test_a_search_refuses_fp16_on_a_cpu_before_its_first_run(tmp_path: Path) -> None:
    asked = TrainConfig.make({"data": "demo:digits", "precision": "fp16", "device": "cpu"})
    with pytest.raises(VituneError, match="got 'fp16' on a CPU"):
        Tuning.within("1m", asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()
