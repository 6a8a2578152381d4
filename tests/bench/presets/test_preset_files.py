"""The preset files: what they may say, what they must say, and the page made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitune.bench.preset_images import Images
from vitune.bench.preset_page import deviations_page
from vitune.bench.presets import Preset, common_deviations, load_preset, preset_names
from vitune.bench.study.plan import Study, Task
from vitune.bench.suites.suites import FGVC, VTAB1K
from vitune.cli import run
from vitune.errors import VituneError
from vitune.training import TrainConfig

PAGE = Path(__file__).resolve().parents[3] / "docs" / "deviations.md"
RESIZE = {"resize": "squash", "to": 224, "filter": "bicubic"}


def study_of(name: str, protocol: Any) -> Study:
    preset = load_preset(name)
    entries = {"vtab1k": VTAB1K, "fgvc": FGVC}[preset.suite]
    tasks = [Task(name=entry.name, data="d", group=entry.group) for entry in entries]
    return preset.study(tasks, name=name, protocol=protocol)


def test_the_page_is_what_the_files_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert PAGE.read_text() == deviations_page()
    assert run(["bench", "presets", "--page"]) == 0
    assert capsys.readouterr().out == PAGE.read_text()
    text = PAGE.read_text()
    for name in preset_names():
        assert f"## {name}\n" in text
        for deviation in load_preset(name).deviations:
            assert f"- {deviation}\n" in text
    assert len(common_deviations()) >= 4


@pytest.mark.parametrize("name", preset_names())
def test_one_preset_is_shown_with_images_and_deviations(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "presets", name]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    preset = load_preset(name)
    assert f"training images, honest: {preset.images.honest.train}" in shown
    for deviation in (*preset.deviations, *common_deviations()):
        assert deviation.there in shown and deviation.source in shown


@pytest.mark.parametrize("name", preset_names())
def test_what_differs_between_the_protocols_is_declared(name: str) -> None:
    """Every setting that honest has otherwise than as-published is spoken of in the file."""
    words = {
        "pixel_stats": "normalised",
        "augment": "flip",
        "random_erasing": "noise",
        "warmup_lr": "rate",
        "min_lr": "rate",
        "drop_last": "last incomplete batch",
        "head_init": "classifier starts",
        "ema_ramp": "averaging",
        "decay_rule": "decayed",
        "drop_path": "stochastic depth",
        "ema": "averaging",
        "epochs": "epochs",
    }
    preset = load_preset(name)
    honest, published = (study_of(name, protocol) for protocol in ("honest", "as-published"))
    declared = (*preset.deviations, *common_deviations())
    text = " ".join(str(found) for found in declared if found.under != "as-published")
    chosen = {"lr", "weight_decay", "method_args", "batch_size", "precision"}
    if name == "rlrr-fgvc-augreg":
        chosen.add("drop_last")  # of one task alone, whose last batch would be odd
    for task in published.tasks:
        configs = [
            study.config(study.variants[0], task, setting, seed=0, refit=True).model_dump()
            for study in (honest, published)
            for setting in study.grid_of(study.variants[0])[:1]
        ]
        for key, value in configs[0].items():
            searched = key == "objective_args" and "objective_args" in preset.grid[0]
            if value != configs[1][key] and key not in chosen and not searched:
                same_rule = key == "decay_rule" and preset.method in ("ssf", "vpt_deep")
                none = key == "decay_rule" and configs[1]["weight_decay"] == 0
                assert same_rule or none or words[key] in text, (task.name, key)
    recipes = [published.recipe_of(published.variants[0], task) for task in published.tasks]
    if any(recipe["rate_per"] == "epoch" for recipe in recipes):
        assert "rate" in text
    if any(recipe["train_on"] == "train" for recipe in recipes):
        assert "`train` alone" in text
    if any(recipe["element_dropout"] for recipe in recipes):
        assert "element-wise dropout" in text


def test_tables_say_where_the_source_has_no_settings_by_task() -> None:
    silent = {name for name in preset_names() if load_preset(name).remarks("as-published")}
    assert silent == {f"{m}-{s}" for m in ("arc", "hta", "lora") for s in ("vtab1k", "fgvc")} | {
        "pace-vtab1k"
    }
    for name in silent:
        (remark,) = study_of(name, "as-published").remarks
        assert "prints no per-task settings" in remark
        assert study_of(name, "honest").remarks == ()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train": {**RESIZE, "to": 256}}, "expected the same resize"),
        ({"train": {**RESIZE, "crop": "resized", "flip": True}}, "or none with crop 'resized'"),
        ({"train": {**RESIZE, "crop": "window", "flip": True}}, "got windows of 224 pixels"),
        (
            {
                "test": {**RESIZE, "to": 256},
                "train": {**RESIZE, "to": 256, "crop": "window"},
            },
            "got crop 'window' with flip False",
        ),
        ({"train": {**RESIZE, "crop": "centre"}}, "train.crop: got 'centre'"),
        ({"test": {**RESIZE, "size": 3}}, "test.size: unknown key"),
        ({"test": {**RESIZE, "to": 128}}, "test.to: got 128"),
        ({"normalise": "coco"}, "normalise: got 'coco'"),
    ],
)
def test_images_that_no_setting_makes_are_refused(changes: dict[str, Any], match: str) -> None:
    values = {"normalise": "half", "test": RESIZE, "train": RESIZE}
    assert Images.make(values).settings()["augment"] == "none"
    with pytest.raises(VituneError, match=match):
        Images.make({**values, **changes})


def test_flips_of_some_tasks_alone() -> None:
    train = {**RESIZE, "flip": ["dtd"], "erase": 0.5}
    images = Images.make({"normalise": "imagenet", "test": RESIZE, "train": train})
    assert images.settings() == {
        "crop_mode": "squash",
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "augment": "none",
        "pixel_stats": "imagenet",
        "random_erasing": 0.5,
    }
    assert images.task_settings() == {"dtd": {"augment": "flip"}}
    assert "flip on dtd, a noise box in 50 % of images" in str(images.train)
    TrainConfig.make({"data": "d", **images.settings()})


def test_a_preset_must_declare_something() -> None:
    values = load_preset("rlrr-vtab1k").model_dump()
    with pytest.raises(VituneError, match="deviations: got"):
        Preset.make({**values, "deviations": []})
    with pytest.raises(VituneError, match="source: got nothing"):
        Preset.make({**values, "deviations": [{"here": "a", "there": "b"}]})
    with pytest.raises(VituneError, match="images: got nothing"):
        Preset.make({key: value for key, value in values.items() if key != "images"})
