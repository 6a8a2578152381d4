"""A run writes down all that it computes with, before it computes, and goes on with just that."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.optim import AdamW

import vitune.data.augment
import vitune.training.fitting
import vitune.training.loop
from vitune.data import Augment
from vitune.errors import AdapterError, DataError, OutputError, TrainingError, VituneError
from vitune.methods import METHODS, Method
from vitune.objectives import Pace
from vitune.runs import RunFolder, RunSummary
from vitune.training import Observer, TrainConfig, fit
from vitune.training.optimiser import parameter_groups

QUICK: dict[str, Any] = {
    "data": "demo:digits?train=40",
    "batch_size": 16,
    "epochs": 3,
    "ema": 0.9,
    "augment": "flip",
    "objective": "pace",
}


class StopsAfter(Observer):
    """Interrupts the run after an epoch, as Ctrl-C would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def epoch_ended(self, row: dict[str, Any]) -> None:
        if row["epoch"] == self.epoch:
            raise KeyboardInterrupt


class StopsAtOnce(Observer):
    """Interrupts the run before its first step."""

    def started(self, loop: Any) -> None:
        raise KeyboardInterrupt


def begun(out: Path, after: int = 1, **settings: Any) -> Path:
    """A run that was stopped after `after` epochs."""
    with pytest.raises(KeyboardInterrupt):
        fit(TrainConfig.make({**QUICK, **settings}), out=out, observer=StopsAfter(after))
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def recorded(run: Path) -> dict[str, Any]:
    values = yaml.safe_load((run / "config.yaml").read_text())
    assert isinstance(values, dict)
    return values


def settings_of(run: Path) -> dict[str, Any]:
    """What a run's config.yaml holds beside what it records."""
    return {name: recorded(run)[name] for name in TrainConfig.model_fields}


def photos(folder: Path, per_class: int = 8) -> Path:
    """Noisy squares of two colours, one folder per class."""
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def test_nothing_is_left_to_a_default_before_the_first_step(tmp_path: Path) -> None:
    class Reads(Observer):
        found: typing.ClassVar[dict[str, Any]] = {}

        def started(self, loop: Any) -> None:
            Reads.found = recorded(tmp_path / "run")

    trained = fit(TrainConfig.make({**QUICK, "epochs": 1}), out=tmp_path / "run", observer=Reads())
    config, resolved = Reads.found, Reads.found["resolved"]
    assert set(TrainConfig.model_fields) | {"resolved", "starts", "sha256"} == set(config)
    assert config["lr"] == trained.summary.lr == METHODS["rlrr"].default_lr(config["backbone"])
    assert config["weight_decay"] == trained.summary.weight_decay
    assert config["warmup_epochs"] == 0.1
    assert (config["precision"], config["device"]) == (trained.summary.precision, "cpu")
    assert resolved["method"]["rank"] == 1 and resolved["method"]["peft_type"] == "RLRR"
    assert resolved["objective"]["pace_sigma"] == 1.0
    assert resolved["augmentation"]["flip_rate"] == 0.5
    assert resolved["optimiser"]["name"] == "AdamW"
    assert resolved["optimiser"]["betas"] == [0.9, 0.999]
    assert resolved["preprocessing"]["image_size"] == [32, 32]
    assert resolved["fingerprint"] == trained.summary.fingerprint
    assert resolved["threads"] == torch.get_num_threads() and resolved["num_processes"] == 1
    (start,) = config["starts"]
    assert start["after_epoch"] == 0 and start["environment"]["packages"]["torch"]
    assert set(start["environment"]) == {"commit", "python", "platform", "packages"}


def other_value(name: str, field: Any) -> Any:
    """A valid value of a setting that is not its default."""
    words = typing.get_args(field.annotation)
    if typing.get_origin(field.annotation) is typing.Literal:
        return next(word for word in words if word != field.default)
    kinds = [kind for kind in words or (field.annotation,) if kind is not type(None)]
    if isinstance(field.default, bool):
        return not field.default
    if kinds[0] in (int, float):
        if field.default:
            return kinds[0](field.default * 2)
        return 64 if kinds[0] is int else 0.25
    return {"augment": "crop_flip", "objective": "cross_entropy", "method": "lora"}.get(name)


@pytest.fixture
def other_defaults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Calling it changes every default that a run of QUICK could fall back on."""

    def new_optimiser(model: Any, lr: float, weight_decay: float, *rest: Any, **more: Any) -> AdamW:
        groups = parameter_groups(model, weight_decay)
        return AdamW(groups, lr=lr, betas=(0.5, 0.6), eps=1e-3, fused=True)

    def change() -> None:
        for name, field in TrainConfig.model_fields.items():
            if not field.is_required() and other_value(name, field) is not None:
                monkeypatch.setattr(field, "default", other_value(name, field))
        TrainConfig.model_rebuild(force=True)
        rule = property(lambda self: 1.0 if self.warmup_epochs is None else self.warmup_epochs)
        monkeypatch.setattr(TrainConfig, "resolved_warmup_epochs", rule)
        for made in (METHODS["rlrr"].config_class, Pace):
            fields = [item for item in dataclasses.fields(made) if item.init]
            given = {"rank": 2, "init": "normal", "pace_sigma": 0.2, "pace_lambda": 3.0}
            before = made.__init__.__defaults__
            assert before is not None
            names = [item.name for item in fields][-len(before) :]
            after = tuple(given.get(name, old) for name, old in zip(names, before, strict=True))
            assert after != before
            monkeypatch.setattr(made.__init__, "__defaults__", after)
        monkeypatch.setattr(Method, "default_lr", lambda self, backbone: 0.5)
        monkeypatch.setattr(Method, "default_weight_decay", lambda self, backbone: 0.5)
        monkeypatch.setitem(vitune.data.augment.PRESETS, "flip", lambda size: Augment(flip_rate=0))
        monkeypatch.setattr(vitune.training.loop, "new_optimiser", new_optimiser)
        monkeypatch.setattr(
            vitune.training.fitting, "resolve_precision", lambda *given: "no such precision"
        )
        load = vitune.training.fitting.load_backbone

        def load_otherwise(*words: Any, **more: Any) -> Any:
            backbone = load(*words, **more)
            other = dataclasses.replace(backbone.preprocessing, mean=(0.1, 0.2, 0.3))
            return dataclasses.replace(backbone, preprocessing=other)

        monkeypatch.setattr(vitune.training.fitting, "load_backbone", load_otherwise)
        torch.set_num_threads(threads + 1)

    threads = torch.get_num_threads()
    yield change
    torch.set_num_threads(threads)
    monkeypatch.undo()
    TrainConfig.model_rebuild(force=True)


def test_a_change_of_every_default_changes_no_resumed_run(
    tmp_path: Path, other_defaults: Callable[[], None]
) -> None:
    class Counts(Observer):
        threads = 0

        def started(self, loop: Any) -> None:
            Counts.threads = torch.get_num_threads()

    fit(TrainConfig.make(QUICK), out=tmp_path / "whole")
    begun(tmp_path / "cut")
    threads = torch.get_num_threads()
    other_defaults()
    fresh = TrainConfig.make({"data": QUICK["data"]})
    assert fresh.batch_size == 64 and fresh.min_lr == 2e-8, "the defaults are others now"
    fit(out=tmp_path / "cut", resume=True, observer=Counts())
    assert Counts.threads == threads and torch.get_num_threads() == threads + 1
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


def test_without_the_record_those_defaults_would_change_the_run(
    tmp_path: Path, other_defaults: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of the check: a new run after the change of defaults ends elsewhere."""
    given = {
        **QUICK, "precision": "fp32", "ema": None, "checkpointing": False, "dp_epsilon": None,
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):  # the record stands before the first step
        fit(TrainConfig.make(given), out=tmp_path / "before", observer=StopsAtOnce())
    other_defaults()
    monkeypatch.setattr(vitune.training.fitting, "resolve_precision", lambda asked, *rest: asked)
    with pytest.raises(KeyboardInterrupt):
        fit(TrainConfig.make(given), out=tmp_path / "after", observer=StopsAtOnce())
    before, after = recorded(tmp_path / "before"), recorded(tmp_path / "after")
    for name in ("lr", "weight_decay", "warmup_epochs", "min_lr"):
        assert before[name] != after[name], name
    for name in ("method", "objective", "augmentation", "optimiser", "preprocessing", "threads"):
        assert before["resolved"][name] != after["resolved"][name], name


@pytest.mark.parametrize("method", ["lora", "vpt_deep", "full"])
def test_methods_of_every_kind_are_resumed_from_their_record(method: str, tmp_path: Path) -> None:
    fit(TrainConfig.make({**PLAIN, "method": method}), out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        settings = TrainConfig.make({**PLAIN, "method": method})
        fit(settings, out=tmp_path / "cut", observer=StopsAfter(1))
    fit(out=tmp_path / "cut", resume=True)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


PLAIN = {"data": QUICK["data"], "batch_size": 16, "epochs": 2}


def test_every_start_is_listed_and_other_software_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path / "run", 2)
    real = vitune.training.fitting.Environment.here()
    other = real.model_copy(update={"packages": {**real.packages, "torch": "9.9"}})
    here = vitune.training.fitting.Environment
    monkeypatch.setattr(here, "here", classmethod(lambda cls: other))
    with pytest.warns(UserWarning, match=r"--resume: torch 9\.9 instead of .* its end may differ"):
        fit(out=run, resume=True)
    first, second = recorded(run)["starts"]
    assert (first["after_epoch"], second["after_epoch"]) == (0, 2)
    assert second["environment"]["packages"]["torch"] == "9.9"


def test_a_run_s_config_can_start_another(tmp_path: Path) -> None:
    fit(TrainConfig.make(PLAIN), out=tmp_path / "one")
    config = TrainConfig.read(tmp_path / "one" / "config.yaml")
    assert config.lr is not None
    fit(config, out=tmp_path / "two")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert settings_of(tmp_path / "one") == settings_of(tmp_path / "two")


@pytest.mark.parametrize("given", [{"start": "plain"}, {"refit": True}])
def test_what_is_given_beside_a_run_s_config_wins_over_what_the_run_chose(
    given: dict[str, Any], tmp_path: Path
) -> None:
    fit(TrainConfig.make(PLAIN), out=tmp_path / "one")
    assert recorded(tmp_path / "one")["choose_best"] is True
    config = TrainConfig.read(tmp_path / "one" / "config.yaml", given)
    fit(config, out=tmp_path / "two")
    assert settings_of(tmp_path / "two") == {
        **settings_of(tmp_path / "one"), **given, "choose_best": False,
    }  # fmt: skip
    again = TrainConfig.read(tmp_path / "two" / "config.yaml")
    fit(again, out=tmp_path / "three")
    assert settings_of(tmp_path / "three") == settings_of(tmp_path / "two")


def test_a_run_on_all_images_has_none_to_choose_on(tmp_path: Path) -> None:
    fit(TrainConfig.make({**PLAIN, "refit": True}), out=tmp_path / "one")
    assert recorded(tmp_path / "one")["choose_best"] is False
    fit(TrainConfig.read(tmp_path / "one" / "config.yaml"), out=tmp_path / "two")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"lr": 0.5}, r"--resume: got lr=0\.5, expected the run's own 0\."),
        ({"epochs": 1}, r"--epochs: got 1, expected at least the 2 that the run has already done"),
        ({"objective_args": {"pace_sigma": 3}}, r"got objective_args=\{'pace_sigma': 3\}"),
        ({"precision": "fp16"}, "got precision='fp16', expected the run's own"),
        ({"data": "demo:digits"}, "--resume: got other images than the run began with: .* new"),
        ({"epochs": 0}, "epochs: got 0, input should be greater"),
        ({"epoch": 3}, r"epoch: unknown option\. Did you mean epochs"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_written(
    tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    run = begun(tmp_path / "run", 2)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(VituneError, match=told):
        fit(out=run, resume=True, **given)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_the_run_says_itself_is_no_other_setting(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 2)
    own = {**QUICK, "lr": None, "precision": "auto", "device": "cpu", "epochs": 4}
    trained = fit(TrainConfig.make(own), out=run, resume=True)
    assert trained.summary.epochs == 4 and recorded(run)["epochs"] == 4
    again = {**recorded(run)}
    settings = {name: again[name] for name in TrainConfig.model_fields}
    assert fit(out=run, resume=True, **settings).summary.epochs == 4


Change = Callable[[Path], object]


def rewrite(file: Path) -> None:
    pixels = np.asarray(Image.open(file)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(file)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: rewrite(root / "red" / "3.png"), r"1 changed \('.*red/3\.png'\)"),
        (lambda root: (root / "red" / "3.png").unlink(), r"1 missing \('.*red/3\.png'\)"),
        (
            lambda root: shutil.copy(root / "red" / "3.png", root / "red" / "9.png"),
            r"1 new \('.*red/9\.png'\)",
        ),
        (
            lambda root: (root / "red" / "3.png").rename(root / "green" / "33.png"),
            r"1 missing .*1 new",
        ),
        (lambda root: (root / "red").rename(root / "rot"), "classes 'green', 'rot' instead of"),
    ],
    ids=["changed", "deleted", "added", "moved", "class"],
)
def test_changed_images_are_refused(tmp_path: Path, change: Change, told: str) -> None:
    data = photos(tmp_path / "photos")
    settings = {"data": str(data), "batch_size": 4, "epochs": 2, "method": "linear_sgd"}
    with pytest.raises(KeyboardInterrupt):
        fit(TrainConfig.make(settings), out=tmp_path / "run", observer=StopsAfter(1))
    change(data)
    with pytest.raises(AdapterError, match=rf"--resume: got other images.*{told}.*Put them back"):
        fit(out=tmp_path / "run", resume=True)


def test_another_backbone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path / "run")
    load = vitune.training.fitting.load_backbone

    def changed(*words: Any, **more: Any) -> Any:
        backbone = load(*words, **more)
        with torch.no_grad():
            backbone.model.blocks[0].mlp.fc1.weight[0, 0] += 1
        return backbone

    monkeypatch.setattr(vitune.training.fitting, "load_backbone", changed)
    with pytest.raises(AdapterError, match=r"--resume: got fingerprint 'v1-.*', expected 'v1-"):
        fit(out=run, resume=True)


def test_images_may_have_moved(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos")
    settings = {"data": str(data), "batch_size": 4, "epochs": 2, "method": "linear_sgd"}
    fit(TrainConfig.make(settings), out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(TrainConfig.make(settings), out=tmp_path / "run", observer=StopsAfter(1))
    data.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="no such folder"):
        fit(out=tmp_path / "run", resume=True)
    fit(out=tmp_path / "run", resume=True, data=str(tmp_path / "moved"))
    assert recorded(tmp_path / "run")["data"] == str(tmp_path / "moved")
    one, other = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_path_holds_in_every_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "photos")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = {"data": "photos", "batch_size": 4, "epochs": 2, "method": "linear_sgd"}
    with pytest.raises(KeyboardInterrupt):
        fit(TrainConfig.make(settings), out="run", observer=StopsAfter(1))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert recorded(tmp_path / "run")["data"] == str(tmp_path / "photos")
    assert fit(out=tmp_path / "run", resume=True).summary.epochs == 2
    monkeypatch.chdir(tmp_path)
    assert fit(out="run", resume=True, data="photos", epochs=3).summary.epochs == 3


@pytest.mark.parametrize("settings", [{"lr": float("inf")}, {"objective": "pase"}, {"seed": 2**64}])
def test_a_failed_start_leaves_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(VituneError, match=r"lr: got inf|objective: got 'pase'|seed: got 184467"):
        fit(**{**PLAIN, **settings}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert fit(**PLAIN, out=tmp_path / "run").summary.status == "finished"


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
        fit(**PLAIN, out=tmp_path / "run", observer=Poisons())
    assert fit(**PLAIN, out=tmp_path / "run").summary.status == "finished"


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
    fit(**PLAIN, out=tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not {name for name in left if name.startswith(".")}


@pytest.mark.parametrize("resume", [False, True])
def test_of_two_runs_in_one_folder_one_wins(tmp_path: Path, resume: bool) -> None:
    class TriesToo(Observer):
        refusal = ""

        def started(self, loop: Any) -> None:
            settings = {} if resume else PLAIN
            with pytest.raises(OutputError) as caught:
                fit(**settings, out=tmp_path / "run", resume=resume)
            TriesToo.refusal = str(caught.value)

    if resume:
        with pytest.raises(KeyboardInterrupt):
            fit(**PLAIN, out=tmp_path / "run", observer=StopsAfter(1))
        fit(out=tmp_path / "run", resume=True, observer=TriesToo())
        assert "has been writing to since" in TriesToo.refusal
    else:
        fit(**PLAIN, out=tmp_path / "run", observer=TriesToo())
        assert "which exists" in TriesToo.refusal
    fit(**PLAIN, out=tmp_path / "alone")
    one, other = weights(tmp_path / "run"), weights(tmp_path / "alone")
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
    with pytest.raises(AdapterError, match=r"or state\.json has changed since it was written"):
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


def test_a_start_that_died_before_its_first_checkpoint_is_begun_again(tmp_path: Path) -> None:
    fit(**PLAIN, out=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for name in ("adapter", "checkpoint"):
        shutil.rmtree(tmp_path / "run" / name)
    for name in ("summary.json", "images.npz"):
        (tmp_path / "run" / name).unlink()
    fit(out=tmp_path / "run", resume=True)
    one, other = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "run" / "images.npz").is_file()


@pytest.mark.parametrize(
    "number", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)), 6]
)
def test_a_full_disk_loses_nothing(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
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
    fit(**PLAIN, out=tmp_path / "whole")
    one, other = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not [path for path in folder.path.rglob(".*")]


KILLS = Path(__file__).with_name("killed_runs.py")


def test_a_run_that_was_killed_anywhere_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Every change with a stride of 1; see the file for the command."""
    done = subprocess.run(
        [sys.executable, str(KILLS), str(tmp_path), "8"],
        capture_output=True,
        text=True,
        check=True,
    )
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) >= 6
    assert all(kill["same"] for kill in kills), kills
    assert {kill["how"] for kill in kills} == {"begun anew", "resumed"}
