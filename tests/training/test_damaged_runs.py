"""Starts that fail, two runs in one folder, damaged files, a full disk, kills: nothing is lost."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from stopped_runs import BRIEF, PLAIN, StopsAfter, recorded, weights

import vitune.files
from vitune.errors import AdapterError, OutputError, TrainingError, VituneError
from vitune.runs import RunFolder, RunSummary
from vitune.training import Observer, fit
from vitune.training.resume_point import _checksum


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that came to its end, to be read and copied."""
    out = tmp_path_factory.mktemp("whole") / "run"
    fit(**PLAIN, out=out)
    return out


@pytest.fixture(scope="module")
def brief_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a probe."""
    out = tmp_path_factory.mktemp("brief") / "run"
    fit(**BRIEF, out=out)
    return out


@pytest.mark.parametrize("settings", [{"lr": float("inf")}, {"objective": "pase"}, {"seed": 2**64}])
def test_a_failed_start_leaves_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(VituneError, match=r"lr: got inf|objective: got 'pase'|seed: got 184467"):
        fit(**{**BRIEF, **settings}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert fit(**BRIEF, out=tmp_path / "run").summary.status == "finished"


def test_the_largest_seed_trains(tmp_path: Path) -> None:
    fit(**{**PLAIN, "epochs": 1, "seed": 2**63 - 1}, out=tmp_path / "run")
    assert recorded(tmp_path / "run")["seed"] == 2**63 - 1


def test_a_run_that_fails_in_its_first_epoch_leaves_nothing(tmp_path: Path) -> None:
    class Poisons(Observer):
        def started(self, loop: Any) -> None:
            with torch.no_grad():
                next(iter(loop.parameters.values())).fill_(float("nan"))

    with pytest.raises(TrainingError, match="loss: got nan at step 1"):
        fit(**PLAIN, out=tmp_path / "run", observer=Poisons())
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    with pytest.raises(TrainingError, match="loss: got nan at step 1"):
        fit(**BRIEF, out=tmp_path / "run", observer=Poisons())
    assert fit(**BRIEF, out=tmp_path / "run").summary.status == "finished"


def test_a_folder_that_is_filled_meanwhile_is_refused(tmp_path: Path) -> None:
    class Fills(Observer):
        def described(self, facts: RunSummary) -> None:
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "mine.txt").write_text("precious")

    with pytest.raises(OutputError, match="which exists, expected a new folder"):
        fit(**PLAIN, out=tmp_path / "run", observer=Fills())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_what_a_dead_start_left_is_no_obstacle(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    from vitune.processes import Writer

    (tmp_path / "run").mkdir()
    part = f".config.yaml.{Writer.here().host}-{child.pid}-0123abcd.part"
    for name in (".lock", part):
        (tmp_path / "run" / name).write_text("half")
    fit(**BRIEF, out=tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not {name for name in left if name.startswith(".")}


@pytest.mark.parametrize("resume", [False, True])
def test_of_two_runs_in_one_folder_one_wins(tmp_path: Path, resume: bool, brief_run: Path) -> None:
    class TriesToo(Observer):
        refusal = ""

        def started(self, loop: Any) -> None:
            settings = {} if resume else BRIEF
            with pytest.raises(OutputError) as caught:
                fit(**settings, out=tmp_path / "run", resume=resume)
            TriesToo.refusal = str(caught.value)

    if resume:
        with pytest.raises(KeyboardInterrupt):
            fit(**BRIEF, out=tmp_path / "run", observer=StopsAfter(1))
        fit(out=tmp_path / "run", resume=True, observer=TriesToo())
        assert "has been writing to since" in TriesToo.refusal
    else:
        fit(**BRIEF, out=tmp_path / "run", observer=TriesToo())
        assert "which exists" in TriesToo.refusal
    one, other = weights(tmp_path / "run"), weights(brief_run)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.yaml", "- 1\n", r"config\.yaml: got no mapping"),
        ("config.yaml", "a: [1\n", r"config\.yaml: got .*expected the YAML that training wrote"),
        ("config.yaml", b"\xff\xfe\x00", r"config\.yaml: got .*expected the YAML"),
        ("config.yaml", {"lr": "fast"}, r"config\.yaml: lr: got 'fast', input should be a valid n"),
        ("config.yaml", {"epochs": -1}, r"config\.yaml: epochs: got -1, input should be greater"),
        ("config.yaml", {"resolved": 3}, r"config\.yaml: resolved: got 3, input should be a valid"),
        ("config.yaml", {"starts": "x"}, r"config\.yaml: starts: got 'x', input should be a valid"),
        ("config.yaml", {"resolved": None}, r"config\.yaml: resolved: got None"),
        ("config.yaml", {"lr": 0.5}, r"config\.yaml: got values that were edited"),
        ("config.yaml", {"starts": []}, r"config\.yaml: starts: got \[\]"),
        ("checkpoint/state.json", "{", r"checkpoint .*damaged file \(state\.json: Expecting"),
        ("checkpoint/state.json", "[1]", r"state\.json: list instead of a mapping"),
        ("checkpoint/state.json", "[" * 100_000, r"checkpoint .*damaged file"),
        ("checkpoint/state.json", {"epoch": "two"}, r"state\.json: epoch: got 'two'"),
        ("checkpoint/state.json", {"step": 7}, r"tensors\.safetensors or state\.json has changed"),
        ("checkpoint/state.json", {"best": 7}, r"state\.json: best: unknown option"),
        ("metrics.jsonl", "nope\n", r"metrics\.jsonl line 1: got 'nope', expected the JSON"),
        ("metrics.jsonl", '{"epoch": "1"}\n', r"metrics\.jsonl line 1: got"),
        ("metrics.jsonl", "[1]\n", r"metrics\.jsonl line 1: got '\[1\]'.*Remove the line"),
        ("images.npz", b"PK", r"images\.npz: got a damaged list of images"),
    ],
)
def test_edited_or_broken_files_are_named(
    stopped_run: Path, tmp_path: Path, file: str, content: Any, told: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    path = run / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content)
    else:
        path.write_text(json.dumps({**yaml.safe_load(path.read_text()), **content}))
    with pytest.raises(VituneError, match=told):
        fit(out=run, resume=True)


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(**PLAIN, out=out, observer=StopsAfter(1))
    return out


def test_a_flipped_bit_in_a_checkpoint_is_seen(stopped_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    file = run / "checkpoint" / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(AdapterError, match=r"or state\.json has changed since"):
        fit(out=run, resume=True)


def test_the_checkpoint_of_another_run_is_refused(stopped_run: Path, tmp_path: Path) -> None:
    """It fits wherever method and backbone are the same, whatever the images and the rate."""
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    state = run / "checkpoint" / "state.json"
    values = json.loads(state.read_text())
    assert values["run"] == recorded(run)["identity"]
    values |= {"run": "0" * 64}
    del values["sha256"]
    state.write_text(json.dumps({**values, "sha256": _checksum(values, state.parent)}))
    with pytest.raises(AdapterError, match=r"checkpoint .*got one of a run with other settings"):
        fit(out=run, resume=True)


def test_a_checkpoint_of_an_older_release_is_continued(stopped_run: Path, tmp_path: Path) -> None:
    """It does not say which run it is of."""
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    state = run / "checkpoint" / "state.json"
    values = json.loads(state.read_text())
    del values["sha256"], values["run"]
    state.write_text(json.dumps({**values, "sha256": _checksum(values, state.parent)}))
    assert fit(out=run, resume=True).summary.epochs == 2


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("probe", r"without probe/probe\.json, expected the solved probe"),
        ("images.npz", r"images\.npz: got a damaged list"),
        ("checkpoint", r"which is finished, without checkpoint/"),
    ],
)
def test_a_run_that_lost_a_part_does_not_go_on_without_it(
    stopped_run: Path, tmp_path: Path, gone: str, told: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    if gone == "checkpoint":  # else a finished run would be trained again from its first epoch
        RunFolder(run).write_summary(RunSummary(method="rlrr"))
    (run / gone).unlink() if gone.endswith("npz") else shutil.rmtree(run / gone)
    with pytest.raises(VituneError, match=told):
        fit(out=run, resume=True)


def test_an_older_run_is_told_apart(stopped_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    values = recorded(run)
    del values["resolved"], values["starts"]
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(AdapterError, match="got a run of an older vitune"):
        fit(out=run, resume=True)


def test_metrics_are_cut_to_the_checkpoint(stopped_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole + '{"epoch": 2, "train_loss": 0}\n{"epoch": 3, "tr')
    fit(out=run, resume=True)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert lines[0] == whole.strip() and json.loads(lines[1])["train_loss"] > 0


def test_a_start_that_died_before_its_first_checkpoint_is_begun_again(
    tmp_path: Path, whole_run: Path
) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    for name in ("adapter", "checkpoint"):
        shutil.rmtree(tmp_path / "run" / name)
    for name in ("summary.json", "images.npz"):
        (tmp_path / "run" / name).unlink()
    fit(out=tmp_path / "run", resume=True)
    one, other = weights(tmp_path / "run"), weights(whole_run)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "run" / "images.npz").is_file()


@pytest.mark.parametrize(
    "number", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)), 6]
)
def test_a_full_disk_loses_nothing(
    tmp_path: Path, number: int, whole_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th file that is flushed to the disk finds it full."""
    flushed = 0
    real = vitune.files._flush

    def full(path: Path) -> None:
        nonlocal flushed
        flushed += 1
        if flushed == number:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path)

    monkeypatch.setattr(vitune.files, "_flush", full)
    with pytest.raises(OSError, match="No space left on device"):
        fit(**PLAIN, out=tmp_path / "run")
    monkeypatch.setattr(vitune.files, "_flush", real)
    folder = RunFolder(tmp_path / "run")
    resume = folder.config.is_file()
    fit(out=folder.path, resume=True) if resume else fit(**PLAIN, out=folder.path)
    one, other = weights(tmp_path / "run"), weights(whole_run)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not [path for path in folder.path.rglob(".*")]


KILLS = Path(__file__).with_name("killed_runs.py")


def test_a_run_that_was_killed_anywhere_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Every change with a stride of 1; see the file for the command."""
    done = subprocess.run(
        [sys.executable, str(KILLS), str(tmp_path), "12"],
        capture_output=True,
        text=True,
        check=True,
    )
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) >= 6
    assert all(kill["same"] for kill in kills), kills
    assert {kill["how"] for kill in kills} == {"begun anew", "resumed"}
