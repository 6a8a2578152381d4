"""Whether a task may be shifted: labels that are places, and labels that are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vitune.backbones import load_backbone
from vitune.methods import HeadProblem, Labelled, LinearProbeConfig
from vitune.ops import calibrated_losses
from vitune.runs import RunFolder
from vitune.training import TrainConfig, augmenting, fit
from vitune.training.probing import COPIES, Probe

SIZE, CLASSES, BUNDLED = 32, 4, "vitune/vit_micro_patch4_32"


def squares(number: int, kind: str, seed: int) -> SimpleNamespace:
    """A square per image; the label is the column it stands in, or how bright it is."""
    rng = np.random.default_rng(seed)
    labels, other = rng.integers(CLASSES, size=number), rng.integers(CLASSES, size=number)
    place, light = (labels, other) if kind == "place" else (other, labels)
    images = torch.zeros(number, 3, SIZE, SIZE, dtype=torch.uint8)
    for image, column, level in zip(images, place, light, strict=True):
        image[:, 12:20, 10 + 3 * column : 13 + 3 * column] = int(60 + 60 * level)
    return SimpleNamespace(labels=labels, images=images, classes=tuple("abcd"))


class Columns:
    """In the reader's place: the mean and the largest value of the columns as features."""

    device = torch.device("cpu")

    def __init__(self, model: Any, preprocessing: Any, *_: Any) -> None:
        self.model, self.preprocessing = model, preprocessing

    def __enter__(self) -> Columns:
        return self

    def __exit__(self, *_: object) -> None: ...
    def __call__(self, split: Any, views: Any = (None,)) -> np.ndarray:
        seen = [split.images if view is None else view(split.images) for view in views]
        profile = torch.cat(seen).float().mean((1, 2)) / 255
        return torch.cat([profile, profile.amax(1, keepdim=True).expand(-1, 8)], 1).numpy()


def judged(kind: str, start: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(augmenting, "FeatureReader", Columns)
    train, val = squares(300, kind, 0), squares(120, kind, 1)
    backbone = load_backbone(BUNDLED, num_classes=CLASSES)
    read = Columns(backbone.model, backbone.preprocessing)
    problem = HeadProblem(Labelled(read(train), train.labels), None, CLASSES, None, 0, "cpu")
    head = LinearProbeConfig(penalty=1e-3).solve(problem)
    losses = calibrated_losses(head.logits(read(val)), torch.as_tensor(val.labels)).numpy()
    probe = Probe(head, "none", 0.0, 0.0, 1.0, np.ones(120, bool), losses, 1.0, 0.0)
    splits: Any = SimpleNamespace(train=train, val=val)
    config = TrainConfig.make({"data": "x", "start": start})
    return augmenting.with_augmentation(config, backbone, splits, probe, "cpu").augment


@pytest.mark.parametrize(("kind", "chosen"), [("place", "none"), ("light", "shift")])
def test_a_start_from_zero_shifts_unless_labels_are_places(
    kind: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judged(kind, "plain", monkeypatch) == chosen


@pytest.mark.parametrize("copies", ["none", "flip"])
def test_shifts_of_no_length_change_nothing(copies: str) -> None:
    """The probe of shifted images has the copies that the probe itself has: the same loss."""
    train, val = squares(100, "place", 0), squares(120, "place", 1)
    backbone = load_backbone(BUNDLED, num_classes=CLASSES)
    read: Any = Columns(backbone.model, backbone.preprocessing)
    views = COPIES[copies]
    known = Labelled(read(train, views=views), np.tile(train.labels, len(views)))
    head = LinearProbeConfig(penalty=1e-3).solve(HeadProblem(known, None, CLASSES, None, 0, "cpu"))
    losses = calibrated_losses(head.logits(read(val)), torch.as_tensor(val.labels)).numpy()
    probe = Probe(head, copies, 0.0, 0.0, 1.0, np.ones(120, bool), losses, 1.0, 0.0)
    splits: Any = SimpleNamespace(train=train, val=val)
    share = augmenting.Judge(probe, splits, read, 0).share_relearnt("none")
    assert share == pytest.approx(1.0, abs=1e-3)


def test_without_validation_or_with_a_choice_nothing_is_judged() -> None:
    backbone = load_backbone(BUNDLED, num_classes=CLASSES)
    nothing: Any = SimpleNamespace(train=None, val=None)
    for given, chosen in (("auto", "none"), ("flip", "flip")):
        config = TrainConfig.make({"data": "x", "start": "plain", "augment": given})
        found = augmenting.with_augmentation(config, backbone, nothing, Probe.of_nothing(), "cpu")
        assert found.augment == chosen


def test_images_are_mirrored_only_where_the_probe_still_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"data": "demo:digits?train=60", "batch_size": 16, "epochs": 1, "lr": 1e-3}
    config = TrainConfig.make({**given, "precision": "fp32", "start": "probe"})
    fit(config, out=tmp_path / "digits")
    assert RunFolder(tmp_path / "digits").read_config()["augment"] == "none"
    monkeypatch.setattr("vitune.training.augmenting.SHARE_KEPT", -100.0)
    fit(config, out=tmp_path / "whatever")
    assert RunFolder(tmp_path / "whatever").read_config()["augment"] == "crop_flip"
