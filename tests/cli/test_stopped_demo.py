"""A demo that was stopped goes on in its folder with the same command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitune.cli import run
from vitune.cli._progress import TrainingProgress
from vitune.training.observer import Running


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitune.cli.demo.DATA", "demo:digits?train=40")
    monkeypatch.setattr("vitune.inference.evaluate_run", lambda *_: {"top1": 0.5})


@pytest.mark.usefixtures("_small")
def test_the_same_command_goes_on(
    tmp_path: Path,
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "demo"
    command = ["demo", "--out", str(out), "--epochs", "2"]

    def stop(self: TrainingProgress, row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingProgress, "epoch_ended", stop)
    assert run(command) == 130
    again = f"vitune demo --out {out} --epochs 2"
    told = f"vitune: stopped. 1 run is kept. Continue with: {again}\n"
    assert capsys.readouterr().err == told
    monkeypatch.delattr(TrainingProgress, "epoch_ended")

    assert "expected 2 as in" in refused("demo", "--out", out, "--epochs", "3")
    probe = (out / "linear" / "summary.json").read_bytes()
    begun: list[int] = []
    monkeypatch.setattr(TrainingProgress, "started", lambda _, loop: begun.append(_epoch(loop)))
    assert run(command) == 0
    assert (out / "linear" / "summary.json").read_bytes() == probe
    assert begun == [1, 0]  # RLRR after its first epoch, full fine-tuning from the start
    shown = capsys.readouterr().out
    assert ": finished before" in shown and "merged RLRR == adapter" in shown
    assert "which exists" in refused(*command)  # nothing is left to do


def _epoch(loop: Running) -> int:
    return loop.progress.epoch


def test_files_of_others_are_not_taken_for_a_demo(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "linear").mkdir()
    (tmp_path / "linear" / "notes.txt").write_text("mine")
    assert "which exists" in refused("demo", "--out", tmp_path)
    shutil.rmtree(tmp_path / "linear")
    (tmp_path / "rlrr").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert "which exists" in refused("demo", "--out", tmp_path)
