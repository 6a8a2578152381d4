"""Training on images that come in groups: folds, decisions, the verdict, and the hint without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitune.data import load_splits
from vitune.inference import evaluate_run
from vitune.methods.core.solved import HeadProblem, Labelled, folds
from vitune.methods.linear import LinearProbeConfig
from vitune.preprocessing import Preprocessing
from vitune.report import read_run
from vitune.runs import RunFolder
from vitune.training import Observer, TrainConfig, fit
from vitune.training.lookalikes import OFTEN, lookalike_remark, lookalikes
from vitune.training.mixing import chosen_share
from vitune.training.starting import kept_probe
from vitune.training.watching import Watch

OBJECTS, SIGHTS = 14, 5


def bursts(seed: int, width: int = 24) -> tuple[Labelled, np.ndarray]:
    """Features of objects of three classes seen several times each, and the groups."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), OBJECTS)
    objects = 0.5 * rng.normal(size=(3, width))[labels] + rng.normal(size=(len(labels), width))
    seen = np.repeat(objects, SIGHTS, 0) + 0.05 * rng.normal(size=(len(labels) * SIGHTS, width))
    groups = np.repeat(np.arange(len(labels)), SIGHTS)
    return Labelled(seen.astype(np.float32), np.repeat(labels, SIGHTS), groups), groups


def test_folds_never_divide_a_group() -> None:
    data, groups = bursts(0)
    found = folds(HeadProblem(data, None, 3))
    assert len(found) == 5
    for fitted, judged in found:
        assert not set(groups[fitted]) & set(groups[judged])
        assert set(data.labels[fitted]) == {0, 1, 2}
    assert sorted(np.concatenate([judged for _, judged in found])) == list(range(len(data)))


def test_a_class_of_one_group_is_always_fitted() -> None:
    data, groups = bursts(1)
    lone = Labelled(data.features, np.where(groups == 4, 3, data.labels), groups)
    found = folds(HeadProblem(lone, None, 4))
    assert found and all(4 not in groups[judged] for _, judged in found)


def test_the_penalty_is_chosen_for_objects_not_yet_seen() -> None:
    """Known answer: with siblings on both sides hardly any penalty is best, for new objects one is.

    New objects are then answered better and with honest confidence.
    """
    gains = []
    for seed in range(6):
        data, _ = bursts(seed)
        rng = np.random.default_rng(seed)
        centres = 0.5 * np.random.default_rng(seed).normal(size=(3, 24))
        labels = rng.integers(0, 3, 400)
        features = (centres[labels] + rng.normal(size=(400, 24))).astype(np.float32)
        losses, penalties = [], []
        for groups in (None, data.groups):
            problem = HeadProblem(Labelled(data.features, data.labels, groups), None, 3)
            head = LinearProbeConfig().solve(problem)
            logits = head.logits(features)
            losses.append(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)))
            penalties.append(head.chosen["penalty"])
        assert penalties[1] > penalties[0]
        gains.append((losses[0] - losses[1]).item())
    assert min(gains) > 0 and np.mean(gains) > 0.2, gains


def test_a_gain_in_one_group_is_no_gain() -> None:
    """Ten pictures of one object improve: image by image that is certain, by group it is chance."""
    probe, trained = torch.ones(60), torch.ones(60)
    trained[:10], trained[10:20] = 0.2, 1.05
    groups = np.arange(60) // 10
    assert chosen_share([probe, trained], (0.0, 1.0)) == 1.0
    assert chosen_share([probe, trained], (0.0, 1.0), groups) == 0.0
    for known, kept in ((None, 1), (groups, 2)):
        watch = Watch(5, best_epoch=1, epoch=2, best=trained, latest=probe, groups=known)
        assert watch.kept_epoch == kept


def test_lookalikes_are_found_where_objects_are_on_both_sides() -> None:
    data, groups = bursts(2)
    order = np.random.default_rng(0).permutation(len(data))
    train, val = data.at(order[:160]), data.at(order[160:])
    share, pairs = lookalikes(train, val)
    assert share > 0.9
    assert all(val.groups[one] == train.groups[other] for one, other in pairs)  # type: ignore[index]
    apart = np.isin(groups, np.random.default_rng(1).permutation(42)[:8])
    share, _ = lookalikes(data.at(np.flatnonzero(~apart)), data.at(np.flatnonzero(apart)))
    assert share == 0.0
    assert lookalike_remark(OFTEN - 0.01, ()) is None
    assert lookalikes(data.at(np.arange(4)), data.at(np.arange(4))) == (0.0, []), "too few to tell"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """<class>/<object>_<sight>.png of objects that look like nothing in particular."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label in ("one", "two"):
        (root / label).mkdir()
        for number in range(12):
            blocks = rng.integers(0, 200, (8, 8, 3))
            for sight in range(4):
                pixels = np.kron(blocks, np.ones((4, 4, 1))) + rng.integers(0, 25, (32, 32, 3))
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / label / f"object{number}_{sight}.png")
    return root


QUICK: dict[str, Any] = {
    "epochs": 2, "batch_size": 16, "lr": 1e-3, "start": "probe", "precision": "fp32",
    "backbone": "vitune/vit_micro_patch4_32", "augment": "none",
}  # fmt: skip
PATTERN = r"(\w+)/object(\d+)"


def test_a_run_tells_lookalikes_until_groups_are_named(photos: Path, tmp_path: Path) -> None:
    blind = fit(TrainConfig.make({**QUICK, "data": str(photos)}))
    (told,) = [remark for remark in blind.summary.remarks if remark.kind == "lookalikes"]
    assert "--groups" in told.text and told.num == len(told.names)
    one, _, other = told.names[0].partition(" like ")
    assert Path(one).name.split("_")[0] == Path(other).name.split("_")[0]
    found = fit(
        TrainConfig.make({**QUICK, "data": str(photos), "groups": PATTERN}), out=tmp_path / "run"
    )
    assert not found.summary.remarks
    assert found.summary.val_groups == 4  # two of twelve objects of each class
    assert found.summary.held_out == "16 images in 4 whole groups of training, stratified, seed 0"
    assert read_run(tmp_path / "run").summary == found.summary
    result = evaluate_run(tmp_path / "run", including_training=True)
    assert result["num_groups"] == 24 and 1 <= result["effective_images"] <= 96
    (evaluation,) = read_run(tmp_path / "run").evaluations
    assert any("24 groups" in mark for mark in evaluation.marks)


def test_a_resumed_run_has_the_same_groups_and_verdict(photos: Path, tmp_path: Path) -> None:
    class Stops(Observer):
        def epoch_ended(self, row: dict[str, Any]) -> None:
            if row["epoch"] == 1:
                raise KeyboardInterrupt

    config = TrainConfig.make({**QUICK, "data": str(photos), "groups": PATTERN})
    whole = fit(config, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(config, out=tmp_path / "part", observer=Stops())
    resumed = fit(out=tmp_path / "part", resume=True)
    probe = kept_probe(RunFolder(tmp_path / "part"))
    assert probe is not None and probe.groups is not None and len(set(probe.groups.tolist())) == 4
    assert resumed.summary.verdict == whole.summary.verdict is not None
    size = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    splits = load_splits(photos, size, seed=0, groups=PATTERN)
    assert splits.val is not None
    assert resumed.summary.num_val == len(splits.val)
