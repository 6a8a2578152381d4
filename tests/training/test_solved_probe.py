"""Runs whose head is solved: an ordinary run folder, scikit-learn's accuracy, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler

from vitune.adapters import AdapterCard
from vitune.backbones import load_backbone
from vitune.data import Split, augmentation, load_splits
from vitune.errors import AdapterError, VituneError
from vitune.inference import evaluate_run, load_run, merge_run, predict
from vitune.methods import HeadProblem, Labelled, get_method
from vitune.training import TrainConfig, fit
from vitune.training.feature_reader import FeatureReader, mirrored
from vitune.training.probing import solve_probe

DIGITS = "demo:digits?train=100"
BUNDLED = "vitune/vit_micro_patch4_32"
BOTH = ("train", "val")


def head_of(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    weight = next(value for name, value in tensors.items() if name.endswith("weight"))
    return weight, next(value for name, value in tensors.items() if name.endswith("bias"))


def features_of(split: Split) -> np.ndarray:
    backbone = load_backbone(BUNDLED, num_classes=10)
    with FeatureReader(backbone.model, backbone.preprocessing, "cpu") as read:
        return np.array(read(split))


@pytest.mark.parametrize("method", ["linear", "ncm"])
def test_a_solved_run_is_a_run_like_any_other(method: str, tmp_path: Path) -> None:
    trained = fit(data=DIGITS, method=method, image_size=16, out=tmp_path / "run")
    assert trained.summary.reported.val_accuracy > 0.5
    assert trained.summary.num_trainable_without_head == 0
    assert trained.summary.lr is None
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["val_accuracy"] == trained.summary.reported.val_accuracy
    assert "Traceback" not in (tmp_path / "run" / "report.html").read_text()
    found = evaluate_run(tmp_path / "run", device="cpu")
    assert found["top1"] > 0.5
    merge_run(tmp_path / "run", tmp_path / "merged")
    splits = load_splits(DIGITS, trained.backbone.preprocessing, seed=0)
    assert splits.val is not None
    plain, merged = (
        [row.classes for row in predict(load_run(path, device="cpu"), splits.val)]
        for path in (tmp_path / "run", tmp_path / "merged")
    )
    assert plain == merged
    right = np.mean(
        [c == (splits.classes[y],) for c, y in zip(plain, splits.val.labels, strict=True)]
    )
    assert right == pytest.approx(trained.summary.reported.val_accuracy, abs=1e-6)


def test_the_head_is_scikit_learn_s_at_the_same_strength(tmp_path: Path) -> None:
    arguments = {"penalty": "0.05", "copies": "none"}
    trained = fit(data=DIGITS, method="linear", method_args=arguments, out=tmp_path / "run")
    train = load_splits(DIGITS, trained.backbone.preprocessing, seed=0).train
    assert train is not None
    scaler = StandardScaler()
    inputs = scaler.fit_transform(features_of(train).astype(np.float64))
    strength = 1 / (0.05 * len(train))
    known = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(inputs, train.labels)
    weight, bias = head_of(tmp_path / "run")
    np.testing.assert_allclose(weight.numpy() * scaler.scale_, known.coef_, atol=1e-3)
    centred = bias.numpy() + weight.numpy() @ scaler.mean_
    np.testing.assert_allclose(
        centred - centred.mean(), known.intercept_ - known.intercept_.mean(), atol=1e-3
    )


def test_ncm_answers_as_scikit_learn_s_nearest_centroid() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    features = (rng.normal(size=(4, 12))[labels] + rng.normal(size=(200, 12))) * rng.uniform(1, 9)
    problem = HeadProblem(Labelled(features, labels), None, 4)
    config = get_method("ncm").configure(torch.nn.Linear(1, 1))
    head = config.solve(problem)
    inputs = StandardScaler().fit_transform(features)
    known = NearestCentroid().fit(inputs, labels).predict(inputs)
    assert (head.logits(features).argmax(1).numpy() == known).mean() == 1
    assert head.how == "5-fold cross-validation" and len(head.tried) > 10
    with_absent = config.solve(HeadProblem(Labelled(features, labels), None, 5))
    far = 100 * features
    assert (with_absent.logits(far).argmax(1) == head.logits(far).argmax(1)).all()


def test_neighbours_vote_as_scikit_learn_s_and_their_memory_is_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    features = (rng.normal(size=(4, 12))[labels] + rng.normal(size=(200, 12))).astype(np.float32)
    config = get_method("knn").configure(torch.nn.Linear(1, 1), {"num_neighbours": 5})
    head = config.solve(HeadProblem(Labelled(features[:150], labels[:150]), None, 4))
    known = KNeighborsClassifier(
        5, metric="cosine", weights=lambda far: np.exp((1 - far) / 0.07)
    ).fit(features[:150], labels[:150])
    found = head.logits(features[150:]).argmax(1).numpy()
    assert (found == known.predict(features[150:])).all()
    trained = fit(data=DIGITS, method="knn", out=tmp_path / "run")
    accuracy = trained.summary.reported.val_accuracy
    assert accuracy > 0.5
    assert trained.summary.num_trainable_without_head == 80 * (128 + 10)
    splits = load_splits(DIGITS, trained.backbone.preprocessing, seed=0)
    assert splits.val is not None
    rows = predict(load_run(tmp_path / "run", device="cpu"), splits.val)
    right = [row.classes == (splits.classes[y],) for row, y in zip(rows, splits.val.labels,
                                                                 strict=True)]  # fmt: skip
    assert np.mean(right) == pytest.approx(accuracy, abs=1e-6)
    with pytest.raises(AdapterError, match=r"merge: got method 'knn', expected one that merges"):
        merge_run(tmp_path / "run", tmp_path / "merged")
    with pytest.raises(VituneError, match=r"num_neighbours: got 0, expected at least 1"):
        fit(data=DIGITS, method="knn", method_args={"num_neighbours": "0"})
    folded = get_method("knn").configure(torch.nn.Linear(1, 1))
    assert folded.solve(HeadProblem(Labelled(features, labels), None, 4)).tried


def test_without_validation_folds_choose_and_copies_stay_together() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 30)
    features = rng.normal(size=(90, 8)).astype(np.float32)
    features[:, :3] += 2 * np.eye(3)[labels]
    config = get_method("linear").configure(torch.nn.Linear(1, 1))
    once = config.solve(HeadProblem(Labelled(features, labels), None, 3))
    assert once.how == "5-fold cross-validation"
    twice = HeadProblem(
        Labelled(np.tile(features, (2, 1)), np.tile(labels, 2)), None, 3, np.tile(np.arange(90), 2)
    )
    again = config.solve(twice)
    # Copies in two folds would look like perfect validation for the weakest penalty.
    assert again.chosen["penalty"] == once.chosen["penalty"] > 1e-3


def test_copies_of_images_change_nothing_in_how_well_features_suit() -> None:
    """Noisy labels call for a strong penalty; a copy in the other fold would reward a weak one."""
    backbone = load_backbone(BUNDLED, num_classes=10)
    splits = load_splits("demo:digits?train=300", backbone.preprocessing, seed=0, include=BOTH)
    assert splits.train is not None and splits.val is not None
    rng = np.random.default_rng(0)
    train, val = (
        replace(part, labels=np.where(rng.random(len(part)) < 0.5, part.labels, 0))
        for part in (splits.train, splits.val)
    )

    def summed(copies: int) -> float:
        copied = replace(splits, train=train.subset(np.tile(np.arange(240), copies)), val=val)
        probe = solve_probe(backbone, copied, method_args={"copies": "none"})
        return probe.head.chosen["penalty_1se"] * 240 * copies

    once = summed(1)
    assert once > 3
    assert once / 4 < summed(2) < 4 * once
    assert once / 4 < summed(4) < 4 * once


def test_how_well_features_suit_hardly_depends_on_the_hold_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same 600 images under six hold-outs: cross-validated, λ stays within a tenfold range."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(600, 16)).astype(np.float32)
    scores = features @ rng.normal(size=(16, 4)) / 2 + 3 * rng.gumbel(size=(600, 4))
    labels = scores.argmax(1)
    config = get_method("linear").configure(torch.nn.Linear(1, 1))

    def spread() -> float:
        found = []
        for seed in range(6):
            train, val = np.split(np.random.default_rng(seed).permutation(600), [480])
            held_out = Labelled(features[val], labels[val])
            fitted = Labelled(features[train], labels[train])
            head = config.solve(HeadProblem(fitted, held_out, 4, None, seed))
            assert head.how == "validation"
            found.append(head.chosen["penalty_1se"])
        return max(found) / min(found)

    assert spread() < 11
    monkeypatch.setattr("vitune.methods.linear.ENOUGH_HELD_OUT", 0)
    assert spread() > 30


@pytest.mark.parametrize("num_classes", [300, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_classes_are_solved(num_classes: int) -> None:
    """Two images each, around centres that a nearest-centre rule tells apart almost perfectly."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(num_classes, 12))

    def drawn(per_class: int) -> Labelled:
        labels = np.repeat(np.arange(num_classes), per_class)
        noise = 0.2 * rng.normal(size=(len(labels), 12))
        return Labelled((centres[labels] + noise).astype(np.float32), labels)

    train, val, test = drawn(2), drawn(1), drawn(1)
    for method in ("linear", "ncm"):
        config = get_method(method).configure(torch.nn.Linear(1, 1))
        head = config.solve(HeadProblem(train, val, num_classes))
        assert (head.logits(test.features).argmax(1).numpy() == test.labels).mean() > 0.98


def test_one_image_per_class_is_solved_at_the_prior() -> None:
    config = get_method("linear").configure(torch.nn.Linear(1, 1))
    features = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    head = config.solve(HeadProblem(Labelled(features, np.arange(5)), None, 5))
    assert head.how == "prior"
    assert head.logits(features).argmax(1).tolist() == list(range(5))


def test_features_larger_than_the_budget_lie_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone(BUNDLED, num_classes=10)
    splits = load_splits(DIGITS, backbone.preprocessing, seed=0)
    assert splits.train is not None
    with FeatureReader(backbone.model, backbone.preprocessing, "cpu", 0) as read:
        found = read(splits.train, views=(None, mirrored))
        assert isinstance(found, np.memmap) and Path(found.filename).exists()
        small = read.__class__(backbone.model, backbone.preprocessing, "cpu")(splits.train)
        np.testing.assert_array_equal(found[: len(splits.train)], small)
        assert not np.array_equal(found[len(splits.train) :], small)
        where = Path(found.filename)
    assert not where.exists()
    in_memory = solve_probe(backbone, splits, method_args={"penalty": 0.1})
    monkeypatch.setattr("vitune.training.feature_reader._budget", lambda mib: 0)
    streamed = solve_probe(backbone, splits, method_args={"penalty": 0.1})
    torch.testing.assert_close(in_memory.head.weight, streamed.head.weight, atol=1e-5, rtol=1e-4)


def test_images_kept_larger_are_read_as_validation_images_are(tmp_path: Path) -> None:
    """Exactly so where validation cuts the centre of images of that size, else nearly."""
    rng = np.random.default_rng(0)
    for place in range(8):
        (tmp_path / "ab"[place % 2]).mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (9, 11, 3), np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(tmp_path / "ab"[place % 2] / f"{place}.png")
    backbone = load_backbone(BUNDLED, num_classes=2)

    def read(crop_pct: float, size: tuple[int, int] | None) -> np.ndarray:
        prepared = replace(backbone.preprocessing, crop_pct=crop_pct)
        train = load_splits(
            tmp_path, prepared, seed=0, val_fraction=0, include=("train",), train_size=size
        ).train
        assert train is not None and train.images.shape[1:3] == (size or (32, 32))
        with FeatureReader(backbone.model, prepared, "cpu") as reader:
            return np.array(reader(train))

    np.testing.assert_array_equal(read(0.875, (36, 36)), read(0.875, None))
    scaled, plain = read(1.0, augmentation("fgvc", (32, 32)).train_size((32, 32))), read(1.0, None)
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(scaled, plain, strict=True)]
    others = [np.corrcoef(a, b)[0, 1] for a, b in zip(scaled, plain[::-1], strict=True)]
    assert min(alike) > 0.95 and min(alike) > max(others)


def test_windows_of_larger_images_start_at_the_probe_too() -> None:
    found = fit(data=DIGITS, augment="fgvc", epochs=1, batch_size=32).summary
    assert found.probe is not None and found.probe.val_accuracy > 0.5


@pytest.mark.parametrize("method", ["linear", pytest.param("knn", marks=pytest.mark.slow), "rlrr"])
def test_a_backbone_that_computes_no_numbers_is_refused(
    method: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    weights = load_backbone(BUNDLED, num_classes=10).model.state_dict()
    weights["blocks.3.mlp.fc1.weight"][0, 0] = float("nan")
    save_file(weights, tmp_path / "damaged.safetensors")
    backbone = f"{BUNDLED}@{tmp_path / 'damaged.safetensors'}"
    words = ["--data", DIGITS, "--method", method, "--backbone", backbone]
    told = refused("train", *words, "--out", tmp_path / "run")
    assert "probe: got features that are not finite, expected numbers." in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["linear", "ncm"])
def test_folds_over_a_file_read_it_in_parts(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features that exceed memory must not be copied to it by the cross-validation."""
    largest = [0]

    class Watched(np.memmap):
        def __getitem__(self, part: Any) -> Any:
            found = super().__getitem__(part)
            if not isinstance(part, slice):  # a slice of a map is a map, other indices copy
                largest.append(len(found))
            return found

    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    features = Watched(tmp_path / "f.bin", np.float32, "w+", shape=(60, 8))
    features[:] = rng.normal(size=(60, 8)) + 2 * np.eye(8)[labels]
    monkeypatch.setattr("vitune.methods.linear.STRENGTHS", (0.1, 0.01))
    config = get_method(method).configure(torch.nn.Linear(1, 1))
    whole = config.solve(HeadProblem(Labelled(np.array(features), labels), None, 3))
    monkeypatch.setattr("vitune.ops.logistic.CHUNK_VALUES", 80)
    monkeypatch.setattr("vitune.methods.ncm.CHUNK", 10)
    parts = config.solve(HeadProblem(Labelled(features, labels), None, 3))
    assert 0 < max(largest) <= 10
    assert parts.chosen == whole.chosen
    torch.testing.assert_close(parts.weight, whole.weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(parts.logits(features), whole.logits(np.array(features)))


def test_settings_of_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VituneError, match=r"--lr: got 0\.1 with --method linear.*linear_sgd"):
        fit(data=DIGITS, method="linear", lr=0.1, out=tmp_path / "run")
    with pytest.raises(VituneError, match=r"penalty: got -1, expected a number above 0"):
        fit(data=DIGITS, method="linear", method_args={"penalty": "-1"})
    with pytest.raises(VituneError, match=r"copies: got 'some', expected none or flip"):
        fit(data=DIGITS, method="linear", method_args={"copies": "some"})


def test_the_stepped_probe_stays(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": DIGITS, "method": "linear_sgd", "epochs": 1, "lr": 1e-2}
    fit(TrainConfig.make(settings), out=tmp_path / "run")
    assert AdapterCard.read(tmp_path / "run" / "adapter").method == "linear_sgd"
    assert not (tmp_path / "run" / "probe").exists()


@pytest.mark.slow
def test_cifar_is_as_accurate_as_scikit_learn(shared_dir: Path) -> None:
    data = f"vtab:{shared_dir}/data/vtab-1k/cifar"
    backbone = load_backbone(BUNDLED, num_classes=100)
    splits = load_splits(data, backbone.preprocessing, seed=0, include=("train", "val", "test"))
    assert splits.train is not None and splits.val is not None and splits.test is not None
    found = solve_probe(backbone, splits, method_args={"copies": "none"})
    train, val, test = (features_of(s) for s in (splits.train, splits.val, splits.test))
    scaler = StandardScaler().fit(train)
    models = [
        LogisticRegression(C=c, max_iter=500).fit(scaler.transform(train), splits.train.labels)
        for c in (0.003, 0.01, 0.03, 0.1)
    ]
    best = max(models, key=lambda model: model.score(scaler.transform(val), splits.val.labels))
    theirs = best.score(scaler.transform(test), splits.test.labels)
    ours = (found.head.logits(test).argmax(1).numpy() == splits.test.labels).mean()
    assert ours >= theirs - 0.01
    assert ours > 0.2
