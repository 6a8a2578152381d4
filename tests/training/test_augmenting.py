"""Whether a task may be shifted: labels that are places, and labels that are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vitune.backbones import load_backbone
from vitune.data import Split
from vitune.methods import HeadProblem, Labelled, LinearProbeConfig
from vitune.ops import calibrated_losses
from vitune.runs import RunFolder
from vitune.training import TrainConfig, augmenting, fit
from vitune.training.augmenting import Judge
from vitune.training.probing import COPIES, Probe

SIZE, CLASSES, BUNDLED = 32, 4, "vitune/vit_micro_patch4_32"


def squares(number: int, kind: str, seed: int, groups: Any = None) -> Split:
    """A square per image; the label is the column it stands in, or how bright it is."""
    rng = np.random.default_rng(seed)
    labels, other = rng.integers(CLASSES, size=number), rng.integers(CLASSES, size=number)
    place, light = (labels, other) if kind == "place" else (other, labels)
    images = np.zeros((number, SIZE, SIZE, 3), np.uint8)
    for image, column, level in zip(images, place, light, strict=True):
        image[12:20, 10 + 3 * column : 13 + 3 * column] = int(60 + 60 * level)
        image[0] = rng.integers(256, size=(SIZE, 3))  # no two images are the same
    paths = tuple(f"{kind}-{seed}-{place}.png" for place in range(number))
    return Split("train", images, labels, paths, tuple("abcd"), groups=groups)


def split_into(train: Split, val: Split) -> Any:
    return SimpleNamespace(train=train, val=val)


class Columns:
    """In the reader's place: the mean and the largest value of the columns as features."""

    device = torch.device("cpu")

    def __init__(self, model: Any, preprocessing: Any, *_: Any) -> None:
        self.model, self.preprocessing = model, preprocessing

    def __enter__(self) -> Columns:
        return self

    def __exit__(self, *_: object) -> None: ...
    def __call__(self, split: Any, views: Any = (None,)) -> np.ndarray:
        images = torch.from_numpy(split.images).permute(0, 3, 1, 2)
        seen = [images if view is None else view(images) for view in views]
        profile = torch.cat(seen)[:, :, 1:].float().mean((1, 2)) / 255
        return torch.cat([profile, profile.amax(1, keepdim=True).expand(-1, 8)], 1).numpy()


def judge_of(train: Split, val: Split, copies: str = "none") -> tuple[Judge, Any, Probe]:
    """A judge on a probe of `Columns`, with the backbone and the probe."""
    backbone = load_backbone(BUNDLED, num_classes=CLASSES)
    read: Any = Columns(backbone.model, backbone.preprocessing)
    views = COPIES[copies]
    known = Labelled(read(train, views=views), np.tile(train.labels, len(views)))
    head = LinearProbeConfig(penalty=1e-2).solve(HeadProblem(known, None, CLASSES, None, 0, "cpu"))
    losses = calibrated_losses(head.logits(read(val)), torch.as_tensor(val.labels)).numpy()
    probe = Probe(head, copies, 0.0, 0.0, 1.0, np.ones(len(val), bool), losses, 1.0, 0.0)
    return Judge(probe, split_into(train, val), read, 0), backbone, probe


def judged(kind: str, start: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(augmenting, "FeatureReader", Columns)
    train, val = squares(300, kind, 0), squares(120, kind, 1)
    _, backbone, probe = judge_of(train, val)
    config = TrainConfig.make({"data": "x", "start": start})
    return augmenting.with_augmentation(
        config, backbone, split_into(train, val), probe, "cpu"
    ).augment


@pytest.mark.parametrize(("kind", "chosen"), [("place", "none"), ("light", "shift")])
def test_a_start_from_zero_shifts_unless_labels_are_places(
    kind: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judged(kind, "plain", monkeypatch) == chosen


@pytest.mark.parametrize("copies", ["none", "flip"])
def test_shifts_of_no_length_change_nothing(copies: str) -> None:
    judge, *_ = judge_of(squares(40, "light", 0), squares(40, "light", 1), copies)
    gain, error = judge.gain_of_copies("none")
    assert gain == pytest.approx(0, abs=1e-3) and error < 1e-3
    if copies == "none":
        assert judge.share_relearnt("none") == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("share", "gain", "allowed"),
    [
        (0.81, (-9.0, 1.0), True),
        (0.79, (2.1, 1.0), True),
        (0.79, (1.9, 1.0), False),
        (0.79, (float("nan"), float("nan")), False),
    ],
)
def test_less_knowledge_is_made_up_for_by_a_better_probe(
    share: float, gain: tuple[float, float], allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, *_ = judge_of(squares(20, "light", 0), squares(20, "light", 1))
    monkeypatch.setattr(Judge, "share_relearnt", lambda *_: share)
    monkeypatch.setattr(Judge, "gain_of_copies", lambda *_: gain)
    assert judge.may_change("shift") is allowed


def test_shifted_copies_blur_places() -> None:
    gain, error = judge_of(squares(80, "place", 0), squares(40, "place", 1))[0].gain_of_copies(
        "shift"
    )
    assert gain < -2 * error < 0


def test_images_of_a_group_count_as_one() -> None:
    """Every image four times over: in one fold, and with the error of a fourth as many."""
    rows, marks = np.repeat(np.arange(16), 4), np.repeat(np.arange(32), 4)
    train, val = (squares(16, "place", seed).subset(rows) for seed in (0, 1))
    alone = judge_of(train, val)[0].gain_of_copies("shift")
    grouped = judge_of(replace(train, groups=marks[:64]), replace(val, groups=marks[64:]))[0]
    gain, error = grouped.gain_of_copies("shift")
    assert gain == pytest.approx(alone[0], abs=0.2) and error > 1.5 * alone[1]


def test_a_sample_stands_for_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmenting, "MOST_JUDGED", 60)
    seen: list[int] = []
    monkeypatch.setattr(Columns, "__call__", counting(Columns.__call__, seen))
    judge, *_ = judge_of(squares(200, "place", 0), squares(100, "place", 1))
    seen.clear()
    judge.gain_of_copies("shift")
    assert len(seen) == 2 and sum(seen) == 60 and min(seen) > 5


def counting(read: Any, seen: list[int]) -> Any:
    def counted(self: Columns, split: Split, views: Any = (None,)) -> np.ndarray:
        seen.append(len(split))
        found: np.ndarray = read(self, split, views)
        return found

    return counted


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
