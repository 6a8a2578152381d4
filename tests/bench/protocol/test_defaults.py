"""Defaults: chosen on validation, recorded with their command, used where the user gives none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vitune.bench.study.execution import InProcess
from vitune.bench.study.plan import Study
from vitune.bench.study.protocol import read_choices, run_study
from vitune.bench.study.workbench import Workbench
from vitune.cli import run
from vitune.methods import METHODS, get_method
from vitune.methods.core.default_settings import FILE
from vitune.training import TrainConfig
from vitune.training.fitting import fit

Make = Callable[..., Study]


def test_the_command_records_what_validation_chose(
    tiny_study: Make, bench: Workbench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = [
        {"label": "linear_sgd", "method": "linear_sgd"},
        {"label": "two heads are better", "method": "linear_sgd"},
        {"label": "lora", "method": "lora", "method_args": {"r": 2}},
    ]
    grid = [{"lr_factor": 0.1}, {"lr_factor": 10.0}]
    study = tiny_study(variants=variants, grid=grid)
    outcome = run_study(study, tmp_path / "study", executor=InProcess(bench))
    assert read_choices(tmp_path / "study") == list(outcome.choices)
    out = tmp_path / "defaults.json"
    words = ["bench", "defaults", str(tmp_path / "study"), "--out", str(out)]
    assert run([*words, "--against", str(tmp_path / "study")]) == 0
    printed = capsys.readouterr().out
    assert "| linear_sgd | lr_factor " in printed and "+0.0 |" in printed
    kept = json.loads(out.read_text())
    ((entry,),) = kept.values()
    chosen = outcome.choices[0].setting["lr_factor"]
    chosen *= get_method("linear_sgd").default_lr(study.backbone)
    assert list(kept) == [study.backbone]
    assert entry["settings"] == {"linear_sgd": {"lr": pytest.approx(chosen)}}
    assert entry["tasks"] == ["count"] and entry["studies"][0]["epochs"] == 1
    old = {"command": "", "settings": {"linear_sgd": {"lr": 1.0}, "ssf": {"lr": 2.0}}}
    out.write_text(json.dumps({"another": [], study.backbone: [old]}))
    assert run(words) == 0
    written = json.loads(out.read_text())
    assert set(written) == {study.backbone, "another"}
    settings = [record["settings"] for record in written[study.backbone]]
    assert settings == [{"ssf": {"lr": 2.0}}, entry["settings"]]
    for odd in ("{", "[1]", json.dumps({study.backbone: {"settings": {}}})):
        out.write_text(odd)
        assert run(words) == 2 and out.read_text() == odd
    assert run(["bench", "defaults", str(tmp_path)]) == 2
    capsys.readouterr()
    assert run([*words, "--against", str(tmp_path / "nowhere")]) == 2
    assert not capsys.readouterr().out  # refused before anything is said


def test_recorded_settings_are_what_training_uses() -> None:
    records = json.loads(FILE.read_text())
    for backbone, found in records.items():
        latest: dict[str, float] = {}
        for entry in found:
            assert entry["command"].startswith(("vitune bench defaults ", "python studies/"))
            assert set(entry["settings"]) <= set(METHODS) and len(entry["tasks"]) >= 2
            for name, settings in entry["settings"].items():
                TrainConfig.make({"data": "demo:digits", "method": name, **settings})
                latest[name] = settings["lr"]
        assert latest
        for name, rate in latest.items():
            assert get_method(name).default_lr(backbone) == rate
    assert get_method("full").default_lr("vitune/vit_micro_patch4_32") == 1e-3
    assert get_method("full").default_lr("vit_base_patch16_224") == 1e-4


def test_a_plain_start_takes_the_recorded_rate() -> None:
    data = "demo:count?train=16&val=8&test=16"
    config = TrainConfig.make({"data": data, "batch_size": 8, "epochs": 1, "start": "plain"})
    assert fit(config).summary.lr == get_method("rlrr").default_lr(config.backbone)
