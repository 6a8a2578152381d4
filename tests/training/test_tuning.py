"""`--tune`: stops on time, warm start, choice within one error, killed and resumed, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vitune.adapters import AdapterCard
from vitune.cli import run
from vitune.errors import TrainingError, VituneError
from vitune.inference import load_run
from vitune.runs import Calibration, Reported, RunSummary
from vitune.training import TrainConfig, fit
from vitune.training.attempt_log import AttemptLog
from vitune.training.attempts import Attempt, choose, outcome, report
from vitune.training.halving import halving_study
from vitune.training.probing import Probe, solve_probe
from vitune.training.tune_request import require_tunable, rungs_of, seconds_of
from vitune.training.tuning import FACTORS, Tuning

pytest.importorskip("optuna", reason="needs the extra vitune[search]")

DIGITS = "demo:digits?train=60"
QUICK: dict[str, Any] = {
    "data": DIGITS, "batch_size": 16, "precision": "fp32", "device": "cpu", "image_size": 16,
}  # fmt: skip


def attempt(loss: float, *, factor: float = 1.0, epochs: int = 3, noise: float = 0.0) -> Attempt:
    rng = np.random.default_rng(round(1000 * loss + 10 * factor))
    drawn = rng.normal(size=100)
    losses = loss + noise * (drawn - drawn.mean())
    return Attempt(0, "rlrr", factor, 1e-3, epochs, epochs, float(losses.mean()), 0.5, 1.0, 1.0,
                   losses)  # fmt: skip


def test_of_equals_within_one_error_the_closest_to_the_rule_is_chosen() -> None:
    far_best = attempt(1.00, factor=8.0, noise=0.5)
    near = attempt(1.01, factor=1.0, noise=0.5)
    assert choose([far_best, near]) is near
    clearly_worse = attempt(1.5, factor=1.0)
    assert choose([far_best, clearly_worse]) is far_best
    text = report([far_best, near], near, 12.0)
    assert "| chosen | rlrr" in text and "±" in text


def test_the_outcome_names_the_probe_beside_what_was_chosen() -> None:
    probe = replace(attempt(1.2, epochs=0, noise=0.5), method="linear", lr=None, accuracy=0.4)
    trained = attempt(1.0, noise=0.5)
    said = outcome([probe, trained], trained)
    assert said.startswith("chosen: rlrr, rate 0.001, 3 epochs: validation accuracy 50.0 % against")
    assert "40.0 % of the solved linear probe on 100 images, calibrated cross-ent" in said
    assert "rate 0.001, 1 epoch (the best of 3): val" in outcome([probe], replace(trained, epoch=1))
    assert said.endswith(" lower")
    assert "no trained setting was better" in outcome([probe, attempt(1.5)], probe)


def test_a_search_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    lines: list[str] = []

    def stop_after_one(line: str) -> None:
        lines.append(line)
        if len(lines) == 1:
            raise KeyboardInterrupt

    def tuning(told: Any) -> Tuning:
        return Tuning(
            TrainConfig.make(QUICK), tmp_path / "run", budget_s=600, methods=("rlrr", "lora"),
            rungs=(1, 2), told=told,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        tuning(stop_after_one).run()
    kept = (tmp_path / "run" / "tune" / "attempts.jsonl").read_text().splitlines()
    assert len(kept) == 1 and not (tmp_path / "run" / "tune.json").exists()
    again = tuning(lines.append)
    again._has_time = lambda epochs, method: len(again.attempts) < 4  # type: ignore[method-assign]
    trained = again.run(resume=True)
    rows = (tmp_path / "run" / "tune" / "attempts.jsonl").read_text().splitlines()
    assert rows[:1] == kept and len(rows) == 3
    tried = [(row["method"], row["factor"], row["epochs"]) for row in map(json.loads, rows)]
    assert len(set(tried)) == len(tried)
    assert tried[0] == ("rlrr", 1.0, 1) and ("lora", 1.0, 1) in tried
    assert again.earlier_s > 0
    chosen = json.loads((tmp_path / "run" / "tune.json").read_text())["chosen"]
    assert trained.summary.num_train == 60 and trained.summary.num_val == 0
    card = AdapterCard.read(tmp_path / "run" / "adapter")
    assert card.method == chosen["method"]
    assert card.temperature == pytest.approx(chosen["temperature"])
    assert load_run(tmp_path / "run", device="cpu").classes
    assert "± " in (tmp_path / "run" / "tune.md").read_text()


@pytest.mark.parametrize("budget_s", [40.0, pytest.param(100.0, marks=pytest.mark.slow), 400.0])
def test_it_stops_on_time(budget_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: an epoch of RLRR takes 1 s, one of LoRA 2 s, reading images 3 s."""
    clock = [0.0]
    seconds_per_epoch = {"linear": 0.1, "rlrr": 1.0, "lora": 2.0}
    ran: list[TrainConfig] = []

    def fit(config: TrainConfig, **_: Any) -> Any:
        ran.append(config)
        clock[0] += 0.5 + config.epochs * seconds_per_epoch[config.method]
        generator = torch.Generator().manual_seed(len(ran))
        labels = torch.arange(12) % 10
        logits = torch.randn(12, 10, generator=generator) + F.one_hot(labels).float()
        summary = RunSummary(
            method=config.method,
            reported=Reported("auto", config.epochs, 0.5),
            calibration=Calibration(1.0),
        )
        return SimpleNamespace(seen=(logits, labels), summary=summary)

    def probe(*given: Any, **named: Any) -> Probe:
        clock[0] += 3.0
        return replace(solve_probe(*given, **named), seconds=0.5)

    monkeypatch.setattr("vitune.training.tuning.fit", fit)
    monkeypatch.setattr("vitune.training.tuning.solve_probe", probe)
    monkeypatch.setattr("vitune.training.tuning.time.monotonic", lambda: clock[0])
    tuning = Tuning(
        TrainConfig.make(QUICK), tmp_path / "run", budget_s=budget_s, methods=("rlrr", "lora")
    )
    tuning.run()
    assert ran[-1].refit and not any(config.refit for config in ran[:-1])
    assert 0.4 * budget_s < clock[0] <= budget_s
    longest = max(config.epochs for config in ran[:-1])
    assert longest < 30 if budget_s == 40 else longest == 30 or budget_s < 400


def diverging(methods: tuple[str, ...]) -> Any:
    """`fit`, but the loss of `methods` diverges."""

    def fitted(config: TrainConfig, **given: Any) -> Any:
        if config.method in methods and not config.refit:
            raise TrainingError("loss: got nan at step 3, expected a number.")
        return fit(config, **given)

    return fitted


def test_a_run_that_diverges_costs_the_search_nothing_but_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitune.training.tuning.fit", diverging(("lora",)))
    lines: list[str] = []
    tuning = Tuning(
        TrainConfig.make(QUICK), tmp_path / "run", budget_s=600, methods=("rlrr", "lora"),
        rungs=(1, 2), told=lines.append,
    )  # fmt: skip
    tuning._has_time = lambda epochs, method: len(tuning.attempts) < 4  # type: ignore[method-assign]
    trained = tuning.run()
    assert any("lora at rate" in line and "failed: loss: got nan" in line for line in lines)
    assert trained.summary.method in ("rlrr", "linear")
    text = (tmp_path / "run" / "tune.md").read_text()
    assert "| failed |" in text and "What failed, and why:" in text and "nan |" not in text
    tried = json.loads((tmp_path / "run" / "tune.json").read_text(), parse_constant=pytest.fail)
    failed = [row for row in tried["tried"] if row["failure"]]
    assert failed and all(row["method"] == "lora" and row["loss"] is None for row in failed)
    again, _ = tuning.log.read(len(tuning.attempts[0].losses))
    assert [one.has_failed for one in again] == [one.has_failed for one in tuning.attempts[1:]]


def test_a_search_in_which_nothing_can_be_trained_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitune.training.tuning.fit", diverging(("rlrr", "lora")))
    tuning = Tuning(
        TrainConfig.make(QUICK), tmp_path / "run", budget_s=600, methods=("rlrr", "lora")
    )
    tuning._has_time = lambda epochs, method: len(tuning.attempts) < 9  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="loss: got nan"):
        tuning.run()
    assert len(tuning.attempts) == 3  # the probe and two, the third ended it


def test_what_is_chosen_can_be_trained_again_in_time(tmp_path: Path) -> None:
    """Within one standard error lies a slow run, for whose refit there is no time."""
    quick = replace(attempt(1.00, factor=8.0, noise=0.5), seconds=20.0)
    slow = replace(attempt(1.01, factor=1.0, noise=0.5), seconds=200.0)
    probe = replace(attempt(2.0, epochs=0), seconds=3.0)
    tuning = Tuning(TrainConfig.make(QUICK), tmp_path / "run", budget_s=600)
    tuning.attempts, tuning.earlier_s = [probe, quick, slow], 300.0
    assert choose(tuning.attempts) is slow and tuning._can_refit(slow)
    assert tuning._has_time(1, "lora")
    tuning.earlier_s = 400.0
    assert not tuning._can_refit(slow) and tuning._can_refit(quick)
    assert choose(tuning.attempts, tuning._can_refit) is quick
    assert not tuning._has_time(1, "lora")
    tuning.earlier_s = 590.0  # runs took longer than expected: rather a little late than the probe
    assert tuning._can_refit(probe) and not tuning._can_refit(quick)
    assert choose(tuning.attempts, tuning._can_refit) is quick


def test_trials_see_images_prepared_as_the_settings_say(tmp_path: Path) -> None:
    asked = {**QUICK, "crop_mode": "center", "crop_pct": 0.5, "pixel_stats": "imagenet"}
    tuning = Tuning(TrainConfig.make(asked), tmp_path / "run", budget_s=600)
    tuning._images()
    prepared = tuning.backbone.preprocessing
    assert (prepared.crop_mode, prepared.crop_pct) == ("center", 0.5)
    assert prepared.mean == pytest.approx((0.485, 0.456, 0.406))


def test_a_budget_too_small_says_what_a_run_takes(tmp_path: Path) -> None:
    tuning = Tuning(TrainConfig.make(QUICK), tmp_path / "run", budget_s=0.01)
    with pytest.raises(VituneError, match=r"got 0 s, expected at least \d+ s: one run of 3"):
        tuning.run()


def test_an_interrupted_trial_comes_before_those_that_wait(tmp_path: Path) -> None:
    """Taken up again twice; the trials that wait stay in their order, each once."""
    methods = ("rlrr", "lora", "ssf")

    def asked(study: Any) -> tuple[str, float]:
        trial = study.ask()
        method = trial.suggest_categorical("method", list(methods))
        return method, trial.suggest_float("factor", *FACTORS, log=True)

    def opened() -> Any:
        return halving_study(tmp_path / "journal.log", methods, first_rung=3, seed=0)

    assert asked(opened()) == ("rlrr", 1.0)
    assert asked(opened()) == ("rlrr", 1.0)
    study = opened()
    queued = [asked(study) for _ in range(9)]
    assert queued == [(method, factor) for factor in (1.0, 0.3, 3.0) for method in methods]


def test_a_torn_line_costs_its_own_run_only(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path)
    log.begin({}, 60.0)
    log.add(attempt(1.0), 0, 1.0)
    lines = tmp_path / "tune" / "attempts.jsonl"
    whole = lines.read_text()
    lines.write_text(whole + whole[:50])  # killed while it wrote the second
    (tmp_path / "tune" / "losses-1.npy").touch()
    assert log.num_kept() == 1
    log.add(attempt(2.0), 1, 3.0)
    found, used_s = log.read(100)
    assert [round(one.loss, 6) for one in found] == [1.0, 2.0] and used_s == 3.0


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("tune/attempts.jsonl", '"used_s"', '"used"'),
        ("tune/attempts.jsonl", '"method"', '"methd"'),
        ("tune/attempts.jsonl", "losses-0", "losses-7"),
        ("tune/attempts.jsonl", '"loss": 1.0', '"loss": "x"'),
        ("tune/losses-0.npy", "(100,)", "(50,) "),
        ("tune/losses-0.npy", "NUMPY", "NUMBY"),
        ("tune.json", '"factor"', '"faktor"'),
        ("tune.json", "{", "["),
    ],
)
def test_a_damaged_record_of_a_search_is_named(
    file: str, old: str, new: str, tmp_path: Path
) -> None:
    log = AttemptLog(tmp_path)
    log.begin({}, 60.0)
    tried = attempt(1.0)
    log.add(tried, 0, 1.0)
    log.decide([tried], tried, 1.0)
    assert log.read(100)[1] == 1.0 and log.decided() is not None
    path = tmp_path / file
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), 1))
    with pytest.raises(VituneError, match=r"(attempts\.jsonl line 1|tune\.json.*): .*expected"):
        assert log.read(100) and log.decided()


@pytest.mark.parametrize("content", [b"\xff\xd8\n", b"[]\n", b'{"op_code": 0'])
def test_a_damaged_journal_is_named(content: bytes, tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    journal.write_bytes(content)
    with pytest.raises(VituneError, match=r"journal\.log: got a damaged file .* Remove it"):
        halving_study(journal, ("rlrr",), first_rung=3, seed=0)


def test_a_search_goes_on_with_the_images_it_began_with(tmp_path: Path) -> None:
    """Runs on other images cannot be compared, nor can the choice be trained on others."""

    def search(data: str) -> Tuning:
        return Tuning(TrainConfig.make({**QUICK, "data": data}), tmp_path / "run", budget_s=600)

    search(DIGITS)._images()
    tried = attempt(1.0)
    for is_decided in (False, True):
        if is_decided:
            search(DIGITS).log.decide([tried], tried, 1.0)
        with pytest.raises(VituneError, match=r"--resume: got other images than .* began with"):
            search(f"{DIGITS}&seed=1").run(resume=True)


def test_durations_and_rungs() -> None:
    assert [seconds_of(text) for text in ("90s", "20m", "1.5h")] == [90, 1200, 5400]
    for text in ("20", "m", "-3m", "soon", "infm"):
        with pytest.raises(VituneError, match=r"--tune: got .* expected a duration such as 90s"):
            seconds_of(text)
    assert rungs_of(None) == (3, 10, 30) and rungs_of(10) == (1, 3, 10) and rungs_of(1) == (1,)


def test_a_killed_search_goes_on_from_its_folder_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(search: Tuning) -> Attempt:
        seen.append((search.config.data, search.methods, search.rungs, search.budget_s))
        raise faults.pop()

    seen: list[Any] = []
    faults = [VituneError("enough"), VituneError("enough"), KeyboardInterrupt()]
    monkeypatch.setattr(Tuning, "_searched", stopped)
    out = str(tmp_path / "run")
    command = ["train", "--data", DIGITS, "--method", "rlrr", "--epochs", "6", "--tune", "5m"]
    assert run([*command, "--out", out]) == 130
    told = capsys.readouterr()
    assert "demonstration network" in told.out.splitlines()[0]
    assert "0 runs of the search are kept" in told.err
    assert f"Continue with: vitune train --out {out} --resume" in told.err
    again = ["train", "--out", out, "--resume"]
    assert run(again) == 2 and run([*again, "--tune", "10m", "--data", DIGITS]) == 2
    assert seen[1] == seen[0] == (DIGITS, ("rlrr",), (1, 2, 6), 300.0)
    assert seen[2] == (*seen[0][:3], 600.0)
    capsys.readouterr()
    assert run([*again, "--epochs", "3"]) == 2
    assert "--resume: got epochs=3, expected the settings that" in capsys.readouterr().err
    (tmp_path / "run" / "tune" / "request.json").write_text("{")
    assert run(again) == 2 and "request.json" in capsys.readouterr().err
    assert run(["train", "--out", str(tmp_path / "none"), "--resume", "--tune", "5m"]) == 2
    assert "expected the folder of a search" in capsys.readouterr().err


def test_what_the_search_decides_cannot_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(VituneError, match=r"--tune: got it together with --lr 0\.1"):
        require_tunable({"lr": 0.1})
    with pytest.raises(VituneError, match=r"--tune: got --method linear, which is solved"):
        require_tunable({"method": "linear"})
    command = ["train", "--data", DIGITS, "--out", str(tmp_path / "run"), "--tune", "5m"]
    assert run([*command, "--lr", "0.1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()
