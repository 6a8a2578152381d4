"""Defaults: chosen on validation, recorded with their command, used where the user gives none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vitune.bench.execution import InProcess
from vitune.bench.protocol import read_choices, run_study
from vitune.bench.study import Study
from vitune.bench.workbench import Workbench
from vitune.cli import run
from vitune.methods import METHODS, get_method
from vitune.methods._defaults import FILE
from vitune.training import TrainConfig

Make = Callable[..., Study]


def test_the_command_records_what_validation_chose(
    tiny_study: Make, bench: Workbench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = [
        {"label": "linear", "method": "linear"},
        {"label": "two heads are better", "method": "linear"},
    ]
    grid = [{"lr_factor": 0.1}, {"lr_factor": 10.0}]
    study = tiny_study(variants=variants, grid=grid)
    outcome = run_study(study, tmp_path / "study", executor=InProcess(bench))
    assert read_choices(tmp_path / "study") == list(outcome.choices)
    out = tmp_path / "defaults.json"
    words = ["bench", "defaults", str(tmp_path / "study"), "--out", str(out)]
    assert run([*words, "--against", str(tmp_path / "study")]) == 0
    printed = capsys.readouterr().out
    assert "| linear | lr_factor " in printed and "+0.0 |" in printed
    kept = json.loads(out.read_text())
    chosen = outcome.choices[0].setting["lr_factor"] * get_method("linear").default_lr
    assert kept["settings"] == {"linear": {"lr": pytest.approx(chosen)}}
    assert kept["tasks"] == ["count"] and kept["studies"][0]["epochs"] == 1
    assert run(["bench", "defaults", str(tmp_path)]) == 2


def test_recorded_settings_are_what_training_uses() -> None:
    kept = json.loads(FILE.read_text())
    assert set(kept["settings"]) <= set(METHODS)
    for name, settings in kept["settings"].items():
        TrainConfig.make({"data": "demo:digits", "method": name, **settings})
        assert get_method(name).default_lr == settings.get("lr", get_method(name).default_lr)
    assert kept["command"].startswith("vitune bench defaults") or not kept["settings"]
