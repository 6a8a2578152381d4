"""Losses read late: in order, none lost, a bad one named by its own step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vitune.errors import TrainingError
from vitune.training import Observer, TrainConfig, fit, loss_watch
from vitune.training.loss_watch import LossWatch
from vitune.training.resume_point import has_checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_losses_come_back_in_order_so_many_steps_late(lag: int) -> None:
    watch = LossWatch(CPU, lag)
    came = [list(watch.add(torch.tensor(float(step)), step, 1)) for step in range(1, 6)]
    assert [len(part) for part in came] == [0] * lag + [1] * (5 - lag)
    assert [*(value for part in came for value in part), *watch.rest()] == [1, 2, 3, 4, 5]


def test_a_cpu_has_nothing_to_wait_for() -> None:
    assert LossWatch(CPU).lag == 0 and LossWatch(torch.device("cuda")).lag == loss_watch.LAG


def test_a_bad_loss_is_named_by_its_own_step_however_late() -> None:
    watch = LossWatch(CPU, lag=2)
    for step, value in enumerate((1.0, math.inf, 2.0), start=7):
        list(watch.add(torch.tensor(value), step, 3))
    with pytest.raises(TrainingError, match=r"loss: got inf at step 8 \(epoch 3\), expected a fin"):
        list(watch.add(torch.tensor(1.0), 10, 3))


def test_a_run_that_reads_late_ends_alike_and_keeps_its_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 4 is the first of the second epoch: the weights of the first stay in the checkpoint."""
    quick: dict[str, Any] = {"data": "demo:digits?train=32", "epochs": 2, "image_size": 16}
    quick |= {"lr": 1e-3, "batch_size": 8, "start": "plain"}

    class Poisons(Observer):
        def started(self, loop: Any) -> None:
            self.loop = loop

        def stepped(self, step: int, loss: float, num_images: int) -> None:
            if step == self.loop.steps_per_epoch + 1:
                with torch.no_grad():
                    next(iter(self.loop.parameters.values())).fill_(float("nan"))

    first = fit(TrainConfig.make(quick))
    at_once, num_train = first.model.state_dict(), first.summary.num_train
    late = LossWatch.__init__
    monkeypatch.setattr(LossWatch, "__init__", lambda self, device: late(self, device, 5))
    found = fit(TrainConfig.make(quick)).model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in at_once.items())
    steps = math.ceil(num_train / 8)
    with pytest.raises(TrainingError, match=rf"at step {steps + 2} \(epoch 2\)"):
        fit(TrainConfig.make(quick), out=tmp_path / "run", observer=Poisons())
    assert has_checkpoint(tmp_path / "run" / "checkpoint")
    kept = load_file(tmp_path / "run" / "checkpoint" / "tensors.safetensors")
    assert all(value.isfinite().all() for value in kept.values() if value.is_floating_point())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; this machine has none")
def test_a_step_on_a_gpu_makes_nothing_wait() -> None:
    """PyTorch itself says so: a call that waits raises."""
    watch, losses = LossWatch(torch.device("cuda")), torch.rand(20, device="cuda")
    expected = losses.tolist()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [value for step, loss in enumerate(losses) for value in watch.add(loss, step, 1)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [*found, *watch.rest()] == pytest.approx(expected)
