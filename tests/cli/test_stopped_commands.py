"""Ctrl-C and SIGTERM end a command with one line and what is kept; the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cli_images import TRAIN, Failed

from vitune.bench.study.cells import CellResult
from vitune.cli import run
from vitune.cli._progress import TrainingProgress
from vitune.cli._signals import until_terminated
from vitune.cli._study import StudyProgress
from vitune.errors import InterruptError
from vitune.runs import RunFolder


class TestStopsAndGoesOn:
    """A run that is stopped says how to go on, and goes on."""

    @pytest.mark.parametrize("after", [0, 1])
    def test_ctrl_c(
        self,
        after: int,
        photos: Path,
        tmp_path: Path,
        failed: Failed,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def stop(self: TrainingProgress, *ignored: object) -> None:
            raise KeyboardInterrupt

        name = "epoch_ended" if after else "started"
        monkeypatch.setattr(TrainingProgress, name, stop)
        out = tmp_path / "my run"
        told = failed(*TRAIN, "--data", photos, "--out", out, code=130)
        kept = "1 epoch is kept" if after else "0 epochs are kept"
        command = f"vitune train --out '{out}' --resume"
        assert told == f"vitune: stopped. {kept}. Continue with: {command}\n"
        monkeypatch.undo()
        assert run(["train", "--out", str(out), "--resume"]) == 0
        assert json.loads((out / "summary.json").read_text())["epochs"] == 2

    @pytest.mark.parametrize(
        ("owner", "name"), [(TrainingProgress, "described"), (RunFolder, "check_new")]
    )
    def test_ctrl_c_before_anything_is_written(
        self,
        owner: type,
        name: str,
        photos: Path,
        tmp_path: Path,
        failed: Failed,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def stop(*ignored: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(owner, name, stop)
        told = failed(*TRAIN, "--data", photos, "--out", tmp_path / "run", code=130)
        assert told == "vitune: stopped. Nothing was written.\n"
        assert not (tmp_path / "run").exists()

    def test_sigterm(
        self,
        photos: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """As `kill` sends it, or a batch system; a forked process does not take it for its own."""
        forked: list[int] = []

        def stop(self: TrainingProgress, *ignored: object) -> None:
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
                os._exit(1)
            forked.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(TrainingProgress, "epoch_ended", stop)
        out = tmp_path / "run"
        command = [*map(str, TRAIN), "--data", str(photos), "--out", str(out)]
        assert until_terminated(lambda: run(command)) == 143
        told = f"vitune: stopped. 1 epoch is kept. Continue with: vitune train --out {out} --resume"
        assert told in capsys.readouterr().err
        assert forked == [-signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def test_ctrl_c_elsewhere(
        self, trained: Path, failed: Failed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*ignored: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("vitune.cards.AdapterCard.read", stop)
        assert failed("info", trained, code=130) == "vitune: stopped.\n"

    def test_ctrl_c_in_a_study_says_what_is_kept(self) -> None:
        """A failed run is tried again: it is not among them."""
        plain: dict[str, Any] = {"stage": "final", "label": "lora", "task": "photos", "seed": 0}
        plain |= {"setting": {}, "seconds": 1.0, "val": 0.5, "scores": None, "error": None}
        told = r"stopped\. 1 run is kept in runs/all\. Continue with the same command\."
        with pytest.raises(InterruptError, match=told), StudyProgress("runs/all") as watcher:
            for settled, status in ((True, "done"), (False, "failed")):
                found = SimpleNamespace(**plain, status=status, is_settled=settled)
                watcher.finished(cast(CellResult, found), False)
            raise KeyboardInterrupt

    def test_a_config_that_differs_is_refused(
        self, copy: Path, tmp_path: Path, failed: Failed
    ) -> None:
        file = tmp_path / "other.yaml"
        file.write_text("lr: 0.5\n")
        told = failed("train", "--out", copy, "--resume", "--config", file)
        assert "--resume: got lr=0.5, expected the run's own 0.01" in told
        file.write_text("lr: 0.01\nepochs: 3\n")
        assert run(["train", "--out", str(copy), "--resume", "--config", str(file)]) == 0
        assert (
            run(["train", "--out", str(copy), "--resume", "--config", f"{copy}/config.yaml"]) == 0
        )
        assert json.loads((copy / "summary.json").read_text())["epochs"] == 3
        assert "expected at least the 3" in failed(
            "train", "--out", copy, "--resume", "--epochs", 2
        )
