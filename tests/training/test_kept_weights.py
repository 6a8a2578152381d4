"""Weights that validation prefers to the last: those of an epoch, or their average over it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import StopsAfter, weights
from torch import nn

from vitune.cli.train import _whose
from vitune.report.closing import closing_lines
from vitune.runs import RunFolder
from vitune.training import Observer, TrainConfig, fit
from vitune.training.averaging import averager_for
from vitune.training.kept_weights import KeptWeights
from vitune.training.loop import Loop
from vitune.training.resume_point import Progress
from vitune.training.validating import Seen
from vitune.training.watching import Watch

CONFIG = TrainConfig.make({"data": "demo:digits", "epochs": 3})
RUN: dict[str, Any] = {
    "data": "demo:digits?train=60", "batch_size": 8, "epochs": 4, "lr": 5e-3, "start": "plain",
    "image_size": 16, "select": "auto",
}  # fmt: skip


def with_accuracy(right: float, images: int = 200) -> Seen:
    """Logits of two classes; this share of the images is right, all equally sure."""
    labels = torch.zeros(images, dtype=torch.int64)
    signs = torch.where(torch.arange(images) < right * images, 1.0, -1.0)
    return torch.stack([2 * signs, torch.zeros(images)], 1), labels


@pytest.mark.parametrize(
    ("averaged", "expected"), [(0.95, 0.5), (0.85, 1.0), (None, 1.0)], ids=["better", "worse", "no"]
)
def test_the_average_is_taken_if_it_is_better_than_its_epoch(
    averaged: float | None, expected: float
) -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    kept = KeptWeights({"w": weight}, CONFIG)
    progress, average = Progress(epoch=1), {"w": torch.tensor(0.5)}
    kept.saw(1, with_accuracy(0.9), None if averaged is None else average)
    average["w"].fill_(7.0)  # it moves on; what was kept stays
    weight.data.fill_(9.0)
    kept.saw(2, with_accuracy(0.6), average)
    progress.epoch = 2
    again = KeptWeights({"w": nn.Parameter(torch.tensor(9.0))}, CONFIG)
    progress.watched = [kept.watch.best_epoch, kept.watch.epoch]
    again.restore(progress, kept.tensors(), torch.device("cpu"))
    for one in (kept, again):
        asked: list[float] = []

        def score(one: KeptWeights = one, asked: list[float] = asked) -> Seen:
            asked.append(one.parameters["w"].item())
            return with_accuracy(averaged or 0.0)

        found = one.select(progress, None, score)
        assert one.parameters["w"].item() == expected and one.reported_epoch(progress) == 1
        assert one.is_averaged == (expected == 0.5) == (found is not None)
        assert asked == ([] if averaged is None else [0.5])


def test_the_last_epoch_needs_no_average() -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    kept = KeptWeights({"w": weight}, CONFIG)
    for epoch, right in ((1, 0.6), (2, 0.9)):
        kept.saw(epoch, with_accuracy(right), {"w": torch.tensor(0.5)})
    assert kept.select(Progress(epoch=2), None, lambda: with_accuracy(1.0)) is None
    assert weight.item() == 1.0 and not kept.is_averaged


def test_averages_reach_over_an_epoch_and_go_on_from_a_checkpoint_without_them() -> None:
    weight = nn.Parameter(torch.tensor(0.0))
    averager = averager_for({"w": weight}, CONFIG, 100, has_val=True)
    assert averager is not None
    for _ in range(1_000):
        averager.update()
    weight.data.fill_(1.0)
    for _ in range(100):  # one epoch
        averager.update()
    assert averager.averages["w"].item() == pytest.approx(1 - math.exp(-1), abs=0.01)
    averager.restore({}, 1_100)
    assert averager.averages["w"] == 1 and averager.num_updates == 0
    assert averager_for({"w": weight}, CONFIG, 100, has_val=False) is None
    last = CONFIG.model_copy(update={"select": "last"})
    assert averager_for({"w": weight}, last, 100, has_val=True) is None


class Scores(Observer):
    """Keeps the loop."""

    def started(self, loop: Loop) -> None:
        self.loop = loop


def test_a_run_with_averages_is_scored_as_saved_and_the_same_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saw = Watch.saw

    def until_the_second(self: Watch, epoch: int, *seen: Any) -> bool:
        """As if training over-fitted from then on."""
        if epoch <= 2:
            return saw(self, epoch, *seen)
        self.epoch = epoch
        return False

    monkeypatch.setattr(Watch, "saw", until_the_second)
    monkeypatch.setattr(Watch, "kept_epoch", property(lambda self: self.best_epoch))
    watcher = Scores()
    whole = fit(TrainConfig.make(RUN), out=tmp_path / "whole", observer=watcher)
    reported = whole.summary.reported
    assert (reported.epoch, reported.averaged) == (2, True)
    assert watcher.loop.val is not None
    assert watcher.loop.evaluate(watcher.loop.val)[1] == pytest.approx(reported.val_accuracy)
    with pytest.raises(KeyboardInterrupt):
        fit(TrainConfig.make(RUN), out=tmp_path / "cut", observer=StopsAfter(3))
    cut = fit(out=tmp_path / "cut", resume=True)
    assert cut.summary.reported == reported
    assert RunFolder(tmp_path / "cut").read_summary().reported == reported
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "cut")[name]), name
    assert _whose(whole.summary) == " (average over epoch 2)"
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "The weights kept are the average over epoch 2" in " ".join(page.split())
    told = " ".join(closing_lines(whole.summary))
    assert "lowest after epoch 2 of 4: the weights' average over that epoch is kept" in told
