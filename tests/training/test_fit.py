"""`fit` on real digits with the bundled backbone: resume, selection, averaging, failures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stopped_runs import StopsAfter, weights

from vitune.errors import AdapterError, DataError, OutputError, TrainingError, VituneError
from vitune.runs import RunFolder
from vitune.training import Observer, TrainConfig, fit
from vitune.training.resume_point import has_checkpoint

DIGITS = "demo:digits?train=40"
QUICK: dict[str, Any] = {
    "data": DIGITS, "batch_size": 16, "epochs": 3, "lr": 5e-3, "start": "plain",
    "image_size": 16,
}  # fmt: skip
"""Without the probe, which test_starting.py has, and small: a run takes a quarter of the time."""
EVERYTHING = {
    "mixup": 0.4,
    "cutmix": 0.4,
    "drop_path": 0.2,
    "ema": 0.9,
    "augment": "crop_flip",
    "label_smoothing": 0.1,
    "clip_grad": 1.0,
    "accumulation_steps": 2,
    "select": "best",
}


def test_snapshots_hold_the_weights_that_would_be_reported(tmp_path: Path) -> None:
    """With averaged weights too: the last epoch's snapshot is the adapter that is kept."""
    fit(TrainConfig.make({**QUICK, "ema": 0.9, "snapshot_every_epochs": 2}), out=tmp_path / "run")
    snapshots = RunFolder(tmp_path / "run").snapshots()
    assert list(snapshots) == [0, 2, 3]
    stored = {
        epoch: load_file(folder / "adapter_model.safetensors")
        for epoch, folder in snapshots.items()
    }
    kept = weights(tmp_path / "run")
    assert all(torch.equal(stored[3][name], value) for name, value in kept.items())
    assert not all(torch.equal(stored[2][name], value) for name, value in kept.items())
    cards = [
        json.loads((folder / "vitune.json").read_text())
        for folder in (snapshots[0], tmp_path / "run" / "adapter")
    ]
    checksums = [card.pop("checksums") for card in cards]
    assert cards[0].pop("temperature") == 1.0 != cards[1].pop("temperature")
    assert cards[0] == cards[1] and checksums[0] != checksums[1]


@contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        partial(torch.autocast, "cpu", dtype=torch.bfloat16),
        partial(torch.autocast, "cpu", enabled=False),
        float64_by_default,
    ],
)
def test_a_caller_in_other_modes_trains_the_same(mode: Any) -> None:
    settings = TrainConfig.make({**QUICK, "epochs": 1, "data": "demo:digits?train=20"})
    with mode():
        before = torch.is_grad_enabled(), torch.get_default_dtype()
        found = fit(settings).model.state_dict()
        assert before == (torch.is_grad_enabled(), torch.get_default_dtype())
    expected = fit(settings).model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_resumed_run_has_all_its_snapshots(tmp_path: Path) -> None:
    config = TrainConfig.make({**QUICK, "snapshot_every_epochs": 1})
    with pytest.raises(KeyboardInterrupt):
        fit(config, out=tmp_path / "cut", observer=StopsAfter(1))
    assert list(RunFolder(tmp_path / "cut").snapshots()) == [0, 1]
    resumed = fit(out=tmp_path / "cut", resume=True)
    assert "demonstration network" in (resumed.summary.backbone_notice or "")
    assert list(RunFolder(tmp_path / "cut").snapshots()) == [0, 1, 2, 3]
    fit(TrainConfig.make(QUICK), out=tmp_path / "plain")
    assert RunFolder(tmp_path / "plain").snapshots() == {}
    whole, cut = weights(tmp_path / "plain"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], value) for name, value in cut.items())


@pytest.mark.parametrize("extra", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_resumed_run_ends_with_bit_identical_weights(
    tmp_path: Path, extra: dict[str, Any]
) -> None:
    fit(TrainConfig.make({**QUICK, **extra}), out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(TrainConfig.make({**QUICK, **extra}), out=tmp_path / "cut", observer=StopsAfter(2))
    assert has_checkpoint(tmp_path / "cut" / "checkpoint")
    assert not (tmp_path / "cut" / "adapter").exists()
    fit(out=tmp_path / "cut", resume=True)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
    lines = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "cut")
    ]
    assert [row["epoch"] for row in lines[1]] == [1, 2, 3]
    assert [row["train_loss"] for row in lines[0]] == [row["train_loss"] for row in lines[1]]


def test_training_learns_and_reports(tmp_path: Path) -> None:
    trained = fit(
        data="demo:digits?train=100", epochs=3, lr=1e-2, batch_size=32, out=tmp_path / "run"
    )
    assert trained.summary.reported.val_accuracy > 0.4
    assert trained.summary.num_trainable_without_head == 24_320
    assert trained.summary.num_total == 1_205_898
    assert trained.summary.status == "finished"
    parts = {part.role: part.num_parameters for part in trained.summary.trained_parts}
    assert sum(parts.values()) == trained.summary.num_trainable
    assert (tmp_path / "run" / "report.html").stat().st_size > 5_000


def test_seeds_decide_everything(tmp_path: Path) -> None:
    one, same, other = (
        fit(TrainConfig.make({**QUICK, "epochs": 1, "seed": seed})).model.state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_folder_is_never_overwritten(tmp_path: Path) -> None:
    fit(TrainConfig.make({**QUICK, "epochs": 1}), out=tmp_path / "run")
    before = (tmp_path / "run" / "summary.json").read_bytes()
    with pytest.raises(OutputError, match=r"exists, expected a new folder.*--resume"):
        fit(TrainConfig.make({**QUICK, "epochs": 1}), out=tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


def test_resume_keeps_the_run_s_own_settings(tmp_path: Path) -> None:
    fit(TrainConfig.make({**QUICK, "epochs": 1}), out=tmp_path / "run")
    with pytest.raises(VituneError, match=r"--resume: got lr=0\.5, expected the run's own 0\.005"):
        fit(out=tmp_path / "run", resume=True, lr=0.5)
    with pytest.raises(VituneError, match=r"lrr: unknown option\. Did you mean lr"):
        fit(out=tmp_path / "run", resume=True, lrr=0.5)
    with pytest.raises(AdapterError, match="expected a run folder"):
        fit(out=tmp_path / "nothing", resume=True)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Poisons(Observer):
        def started(self, loop: Any) -> None:
            self.loop = loop

        def epoch_ended(self, row: dict[str, Any]) -> None:
            with torch.no_grad():
                next(iter(self.loop.parameters.values())).fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"loss: got nan at step 3 \(epoch 2\).*lower --lr"):
        fit(TrainConfig.make(QUICK), out=tmp_path / "run", observer=Poisons())
    state = json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())
    assert state["epoch"] == 1
    kept = load_file(tmp_path / "run" / "checkpoint" / "tensors.safetensors")
    assert all(value.isfinite().all() for value in kept.values() if value.is_floating_point())


def test_early_stopping_counts_epochs_without_gain() -> None:
    trained = fit(TrainConfig.make({**QUICK, "epochs": 8, "lr": 1e-12, "patience": 2}))
    assert trained.summary.epochs == 3
    assert trained.summary.status == "stopped"


def test_refit_uses_all_training_images_and_no_validation() -> None:
    trained = fit(TrainConfig.make({**QUICK, "epochs": 1, "refit": True}))
    assert trained.summary.num_train == 40
    assert trained.summary.num_val == 0
    assert trained.summary.reported.val_accuracy is None


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--batch-size: got 64, expected at most the 32"):
        fit(TrainConfig.make({**QUICK, "batch_size": 64}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_default_batch_is_all_images_where_they_are_fewer(tmp_path: Path) -> None:
    few = TrainConfig.make({"data": "demo:digits?train=20", "epochs": 1, "image_size": 16})
    trained = fit(few, out=tmp_path / "run")
    assert trained.summary.num_train < few.batch_size == 32
    written = TrainConfig.read(tmp_path / "run" / "config.yaml")
    assert written.batch_size == trained.summary.num_train


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(VituneError, match="--device: got 'cuda', expected a GPU"):
        fit(TrainConfig.make({**QUICK, "device": "cuda"}))


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(TrainConfig.make(QUICK), out=tmp_path / "run", observer=StopsAfter(1))
    (tmp_path / "run" / "checkpoint" / "tensors.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AdapterError, match=r"checkpoint .*damaged file"):
        fit(out=tmp_path / "run", resume=True)


@pytest.mark.parametrize("precision", ["bf16"])
def test_reduced_precision_trains(precision: str) -> None:
    trained = fit(TrainConfig.make({**QUICK, "epochs": 1, "precision": precision}))
    assert trained.summary.precision == precision
    assert all(p.isfinite().all() for p in trained.model.parameters())


def test_an_emulated_number_format_is_told_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vitune.training.precision.slowdown", lambda *_: 61.4)
    told = fit(TrainConfig.make({**QUICK, "epochs": 1, "precision": "bf16"})).summary.notice
    assert "takes 61 times as long as in fp32. --precision fp32 is faster." in (told or "")


@pytest.mark.parametrize(
    "variant", [pytest.param("full", marks=pytest.mark.slow), "fast", "lazy_half"]
)
def test_the_pace_objective_trains_through_the_same_loop(variant: str) -> None:
    settings = {"objective": "pace", "objective_args": {"variant": variant, "pace_sigma": "0.5"}}
    trained = fit(TrainConfig.make({**QUICK, **settings}))
    assert trained.summary.steps == 6


def test_a_method_that_cannot_do_pace_says_so_before_training(tmp_path: Path) -> None:
    with pytest.raises(VituneError, match="objective 'pace': got method 'vpt_deep'"):
        fit(TrainConfig.make({**QUICK, "method": "vpt_deep", "objective": "pace"}))
    with pytest.raises(VituneError, match=r"objective: got 'pase'.*Did you mean pace"):
        fit(TrainConfig.make({**QUICK, "objective": "pase"}))


def test_the_lean_step_trains_the_same() -> None:
    plain, lean = (
        fit(TrainConfig.make({**QUICK, "epochs": 1, "lean": flag})).model.state_dict()
        for flag in (False, True)
    )
    gaps = torch.cat([(plain[name] - lean[name]).abs().flatten() for name in plain])
    assert gaps.median() < 1e-6
    assert (gaps > 1e-4).float().mean() < 0.02
