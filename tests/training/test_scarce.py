"""One image per class, few images: the probe works, adapting works and warns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitune.cli import run
from vitune.training import TrainConfig, fit
from vitune.training.scarce import LoneClasses, lone_classes


@pytest.fixture
def photos(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cow", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name / "1.png")
    return str(tmp_path / "photos")


@pytest.mark.parametrize("method", ["linear", "ncm", "rlrr"])
def test_one_image_per_class(
    method: str, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--data", photos, "--out", str(tmp_path / "run"), "--epochs", "1"]
    assert run([*command, "--method", method]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 classes have one image (ant, bee, cow and others)" in said
    assert ("--method linear is the safe choice" in said) == (method == "rlrr")
    assert "demonstration network" in said.partition("4 training")[0]


def test_a_given_batch_that_is_too_large_is_still_refused(
    photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--data", photos, "--out", str(tmp_path / "run"), "--batch-size", "32"]
    assert run(command) == 2
    assert "--batch-size: got 32, expected at most the 4" in capsys.readouterr().err


def test_a_single_lone_class_costs_no_validation(photos: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("ant", "bee", "cow"):
        for index in range(2, 7):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(photos) / name / f"{index}.png")
    trained = fit(data=photos, method="linear")
    assert (trained.summary.num_train, trained.summary.num_val) == (15, 4)
    assert trained.summary.scarcity_notice.startswith("1 class has one image (dog)")


def test_classes_with_one_image_are_found_only_where_it_matters(photos: str) -> None:
    config = TrainConfig(data=photos)
    assert lone_classes(config) == LoneClasses(("ant", "bee", "cow", "dog"), True)
    assert lone_classes(config.model_copy(update={"refit": True})) == LoneClasses()
    assert lone_classes(TrainConfig(data="demo:count")) == LoneClasses()
