"""A run writes down all that it computes with, before it computes, and goes on with just that."""

from __future__ import annotations

import dataclasses
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stopped_runs import BRIEF, PLAIN, StopsAfter, StopsAtOnce, recorded, weights
from torch.optim import AdamW

import vitune.data.augment
import vitune.training.ingredients
import vitune.training.loop
import vitune.training.stepped_run
from vitune.data import Augment
from vitune.environment import Environment
from vitune.errors import AdapterError, DataError, VituneError
from vitune.methods import METHODS, Method
from vitune.objectives import Pace
from vitune.training import Observer, TrainConfig, fit
from vitune.training.optimiser import parameter_groups
from vitune.training.rates import MOST_DEMAND_WHEN_SHORT, Shape, rate_of

QUICK: dict[str, Any] = {
    "data": "demo:digits?train=40",
    "batch_size": 16,
    "epochs": 3,
    "image_size": 16,
    "ema": 0.9,
    "augment": "flip",
    "objective": "pace",
}


HEAD_ONLY: dict[str, Any] = {
    "batch_size": 4, "epochs": 2, "method": "linear_sgd", "image_size": 16,
}  # fmt: skip


def begun(out: Path, after: int = 1, **settings: Any) -> Path:
    """A run that was stopped after `after` epochs."""
    with pytest.raises(KeyboardInterrupt):
        fit(TrainConfig.make({**QUICK, **settings}), out=out, observer=StopsAfter(after))
    return out


@pytest.fixture(scope="module")
def begun_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after two epochs, to be copied."""
    return begun(tmp_path_factory.mktemp("begun") / "run", 2)


@pytest.fixture(scope="module")
def plain_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with plain settings that came to its end, to be read."""
    out = tmp_path_factory.mktemp("plain") / "run"
    fit(TrainConfig.make(PLAIN), out=out)
    return out


def settings_of(run: Path) -> dict[str, Any]:
    """What a run's config.yaml holds beside what it records."""
    found = recorded(run)
    return {name: found[name] for name in TrainConfig.model_fields}


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
    beside = {"resolved", "starts", "identity", "sha256"}
    assert set(TrainConfig.model_fields) | beside == set(config)
    by_rule = MOST_DEMAND_WHEN_SHORT * rate_of(METHODS["rlrr"].usual_lr, Shape(128, 6, 2, 16))
    assert config["lr"] == trained.summary.lr == pytest.approx(by_rule, rel=0.02)
    assert config["start"] == "probe" and config["head_lr"] == pytest.approx(config["lr"] / 10)
    assert config["weight_decay"] == trained.summary.weight_decay
    assert config["warmup_epochs"] == 0.1
    assert (config["precision"], config["device"]) == (trained.summary.precision, "cpu")
    assert resolved["method"]["rank"] == 1 and resolved["method"]["peft_type"] == "RLRR"
    assert resolved["objective"]["pace_sigma"] == 1.0
    assert resolved["augmentation"]["flip_rate"] == 0.5
    assert resolved["optimiser"]["name"] == "AdamW"
    assert resolved["optimiser"]["betas"] == [0.9, 0.999]
    assert resolved["preprocessing"]["image_size"] == [16, 16]
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
            vitune.training.stepped_run, "resolve_precision", lambda *given: "no such precision"
        )
        load = vitune.training.ingredients.load_backbone

        def load_otherwise(*words: Any, **more: Any) -> Any:
            backbone = load(*words, **more)
            other = dataclasses.replace(backbone.preprocessing, mean=(0.1, 0.2, 0.3))
            return dataclasses.replace(backbone, preprocessing=other)

        monkeypatch.setattr(vitune.training.ingredients, "load_backbone", load_otherwise)
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
    monkeypatch.setattr(
        vitune.training.stepped_run, "resolve_precision", lambda asked, *rest: asked
    )
    with pytest.raises(KeyboardInterrupt):
        fit(TrainConfig.make(given), out=tmp_path / "after", observer=StopsAtOnce())
    before, after = recorded(tmp_path / "before"), recorded(tmp_path / "after")
    for name in ("lr", "weight_decay", "warmup_epochs", "min_lr"):
        assert before[name] != after[name], name
    for name in ("method", "objective", "augmentation", "optimiser", "preprocessing", "threads"):
        assert before["resolved"][name] != after["resolved"][name], name


@pytest.mark.parametrize(
    "method", [pytest.param("lora", marks=pytest.mark.slow), "vpt_deep", "full"]
)
def test_methods_of_every_kind_are_resumed_from_their_record(method: str, tmp_path: Path) -> None:
    fit(TrainConfig.make({**BRIEF, "method": method}), out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        settings = TrainConfig.make({**BRIEF, "method": method})
        fit(settings, out=tmp_path / "cut", observer=StopsAfter(1))
    fit(out=tmp_path / "cut", resume=True)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


def test_every_start_is_listed_and_other_software_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path / "run", 2, start="plain", lr=5e-3)
    real = Environment.here()
    other = real.model_copy(update={"packages": {**real.packages, "torch": "9.9"}})
    monkeypatch.setattr(Environment, "here", classmethod(lambda cls: other))
    with pytest.warns(UserWarning, match=r"--resume: torch 9\.9 instead of .* its end may differ"):
        fit(out=run, resume=True)
    first, second = recorded(run)["starts"]
    assert (first["after_epoch"], second["after_epoch"]) == (0, 2)
    assert second["environment"]["packages"]["torch"] == "9.9"


def test_a_run_s_config_can_start_another(plain_once: Path, tmp_path: Path) -> None:
    config = TrainConfig.read(plain_once / "config.yaml")
    assert config.lr is not None
    fit(config, out=tmp_path / "two")
    one, two = weights(plain_once), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert settings_of(plain_once) == settings_of(tmp_path / "two")


@pytest.mark.parametrize(
    "given", [{"start": "plain"}, pytest.param({"refit": True}, marks=pytest.mark.slow)]
)
def test_what_is_given_beside_a_run_s_config_wins_over_what_the_run_chose(
    given: dict[str, Any], plain_once: Path, tmp_path: Path
) -> None:
    assert recorded(plain_once)["choose_best"] is True
    config = TrainConfig.read(plain_once / "config.yaml", given)
    fit(config, out=tmp_path / "two")
    assert settings_of(tmp_path / "two") == {
        **settings_of(plain_once), **given, "choose_best": False,
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
    begun_once: Path, tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(begun_once, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(VituneError, match=told):
        fit(out=run, resume=True, **given)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_the_run_says_itself_is_no_other_setting(begun_once: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(begun_once, run)
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
    settings = {"data": str(data), **HEAD_ONLY}
    with pytest.raises(KeyboardInterrupt):
        fit(TrainConfig.make(settings), out=tmp_path / "run", observer=StopsAfter(1))
    change(data)
    with pytest.raises(AdapterError, match=rf"--resume: got other images.*{told}.*Put them back"):
        fit(out=tmp_path / "run", resume=True)


def test_another_backbone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path / "run", start="plain", lr=5e-3)
    load = vitune.training.ingredients.load_backbone

    def changed(*words: Any, **more: Any) -> Any:
        backbone = load(*words, **more)
        with torch.no_grad():
            backbone.model.blocks[0].mlp.fc1.weight[0, 0] += 1
        return backbone

    monkeypatch.setattr(vitune.training.ingredients, "load_backbone", changed)
    with pytest.raises(AdapterError, match=r"--resume: got fingerprint 'v1-.*', expected 'v1-"):
        fit(out=run, resume=True)


def test_images_may_have_moved(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos")
    settings = {"data": str(data), **HEAD_ONLY}
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
    settings = {"data": "photos", **HEAD_ONLY}
    with pytest.raises(KeyboardInterrupt):
        fit(TrainConfig.make(settings), out="run", observer=StopsAfter(1))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert recorded(tmp_path / "run")["data"] == str(tmp_path / "photos")
    assert fit(out=tmp_path / "run", resume=True).summary.epochs == 2
    monkeypatch.chdir(tmp_path)
    assert fit(out="run", resume=True, data="photos", epochs=3).summary.epochs == 3
