"""Settings that published recipes need: heads, images, last batches, noise boxes, SGD."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vitune
from vitune.adapters import AdapterCard
from vitune.backbones import load_backbone, start_heads
from vitune.cli import run
from vitune.errors import BackboneError, VituneError
from vitune.preprocessing import Preprocessing
from vitune.training import Observer, TrainConfig

TINY = "demo:count?train=20&val=8&test=8"


class Seen(Observer):
    """What the loop was made of, and what it trained on."""

    def __init__(self) -> None:
        self.steps, self.sizes = 0, []
        self.batches: list[torch.Tensor] = []

    def started(self, loop: Any) -> None:
        self.loop = loop
        self.head = loop.model.get_submodule("base_model.model.head.modules_to_save.default")
        self.start = self.head.weight.detach().clone(), self.head.bias.detach().clone()
        inner = loop.inputs

        def watched(*given: Any) -> Any:
            images, targets = inner(*given)
            self.sizes.append(len(images))
            self.batches.append(images.detach().clone())
            return images, targets

        loop.inputs = watched


def trained(**settings: Any) -> Seen:
    seen = Seen()
    values = {"data": TINY, "method": "linear_sgd", "epochs": 1, "batch_size": 8}
    vitune.fit(observer=seen, **{**values, **settings})
    return seen


def test_the_last_batch_may_be_left_out() -> None:
    assert sum(trained().sizes) == 20 and trained().sizes[-1] == 4
    assert trained(drop_last=True).sizes == [8, 8]


@pytest.mark.parametrize(
    ("init", "std", "bias"),
    [
        ("zero", 0.0, 0.0),
        ("linear", 1 / math.sqrt(3 * 128), 1 / math.sqrt(128)),
        ("trunc_normal", 0.02, 0.0),
        ("kaiming_normal", math.sqrt(2 / 8), 0.0),
    ],
)
def test_the_classifier_starts_as_told(init: str, std: float, bias: float) -> None:
    weight, offset = trained(head_init=init).start
    assert weight.std().item() == pytest.approx(std, rel=0.1, abs=1e-12)
    assert offset.abs().max().item() <= bias + 1e-9 and bool(offset.any()) == (bias > 0)
    again = trained(head_init=init).start
    assert torch.equal(weight, again[0])
    if std:
        assert not torch.equal(weight, trained(head_init=init, seed=1).start[0])


def test_an_unknown_start_is_refused() -> None:
    model = load_backbone("vitune/vit_micro_patch4_32", num_classes=3).model
    with pytest.raises(BackboneError, match=r"head_init: got 'zeros'.*Did you mean zero"):
        start_heads(model, "zeros")
    start_heads(nn.Sequential(model), "zero")


def test_a_noise_box_lies_in_the_share_of_images_asked_for() -> None:
    plain, erased = trained(), trained(random_erasing=1.0)
    for before, after in zip(plain.batches, erased.batches, strict=True):
        changed = (before != after).any(1)  # (b, h, w)
        assert changed.flatten(1).any(1).all()
        for mask in changed:
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all() and box.sum() == mask.sum()
    half = trained(random_erasing=0.5, epochs=6)
    share = np.mean([
        (before != after).any().item()
        for a, b in zip(trained(epochs=6).batches, half.batches, strict=True)
        for before, after in zip(a, b, strict=True)
    ])  # fmt: skip
    assert share == pytest.approx(0.5, abs=0.15)


def test_sgd_needs_a_rate() -> None:
    with pytest.raises(VituneError, match="--optimiser: got 'sgd' without a learning rate"):
        trained(optimiser="sgd")
    seen = trained(optimiser="sgd", lr=0.5, momentum=0.7, weight_decay=0.01)
    (group, *_) = seen.loop.raw_optimiser.param_groups
    assert isinstance(seen.loop.raw_optimiser, torch.optim.SGD)
    assert (group["momentum"], group["weight_decay"]) == (0.7, 0.01)
    assert not torch.equal(seen.head.weight, seen.start[0])


def test_sgd_resumes_where_it_stopped(tmp_path: Path) -> None:
    settings = {"data": TINY, "method": "linear_sgd", "epochs": 3, "batch_size": 8,
                "optimiser": "sgd", "lr": 0.5, "ema": 0.9, "ema_ramp": False, "random_erasing": 0.5,
                "augment": "resized_crop"}  # fmt: skip

    class Stop(Observer):
        def epoch_ended(self, row: dict[str, Any]) -> None:
            if row["epoch"] == 2:
                raise KeyboardInterrupt

    whole = vitune.fit(out=tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        vitune.fit(out=tmp_path / "cut", observer=Stop(), **settings)
    resumed = vitune.fit(out=tmp_path / "cut", resume=True)
    first, second = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_images_are_prepared_as_told_and_stay_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, each in (("train", 6), ("val", 2), ("test", 2)):
        for kind in ("ant", "bee"):
            folder = tmp_path / "photos" / split / kind
            folder.mkdir(parents=True)
            for index in range(each):
                pixels = rng.integers(0, 256, (20, 70, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    command = ["train", "--data", str(tmp_path / "photos"), "--out", str(tmp_path / "run")]
    command += ["--method", "linear_sgd", "--epochs", "1", "--batch-size", "4"]
    command += ["--crop-mode", "center"]
    command += ["--crop-pct", "0.875", "--interpolation", "bilinear", "--pixel-stats", "imagenet"]
    assert run([*command, "--augment", "window"]) == 0
    prepared = AdapterCard.read(tmp_path / "run" / "adapter").preprocessing
    assert (prepared.crop_mode, prepared.crop_pct, prepared.interpolation) == (
        "center", 0.875, "bilinear",
    )  # fmt: skip
    assert prepared.mean == (0.485, 0.456, 0.406)
    assert run(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "photos")]) == 0


def test_without_such_settings_the_checkpoint_decides() -> None:
    own = Preprocessing((32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "lanczos", 0.9, "center")
    assert TrainConfig(data="x").prepared(own) == own
    half = TrainConfig(data="x", pixel_stats="half", crop_mode="squash").prepared(own)
    assert (half.mean, half.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (half.crop_mode, half.crop_pct, half.interpolation) == ("squash", 0.9, "lanczos")
