"""A run made to answer for other shares of its classes: exact, and better where it should be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vitune.adapters import attach, card_of, save_adapter
from vitune.backbones import load_backbone
from vitune.cli import run
from vitune.cli.rebalance import _shares
from vitune.data import load_labelled, load_splits
from vitune.errors import VituneError
from vitune.export.export_images import export_images
from vitune.inference import Rebalanced, evaluate_run, load_run, merge_run, rebalance_run
from vitune.training import fit

SIZES = (60, 25, 10, 6, 4)
"""Training images of the digits 0 to 4."""
BUNDLED = "vitune/vit_micro_patch4_32"
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn digits: uneven for training, 30 of each class for the test."""
    root = tmp_path_factory.mktemp("uneven")
    prepared = load_backbone(BUNDLED).preprocessing
    splits = load_splits("demo:digits?train=800", prepared, seed=0)
    for split, sizes in ((splits.train, SIZES), (splits.test, [30] * len(SIZES))):
        assert split is not None
        for label, size in enumerate(sizes):
            folder = root / split.name / "abcde"[label]
            folder.mkdir(parents=True)
            chosen = np.flatnonzero(split.labels == label)[:size]
            assert len(chosen) == size
            for index in chosen:
                Image.fromarray(np.asarray(split.images[index])).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def solved(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    fit(data=str(images), backbone=BUNDLED, method="linear", out=folder)
    return folder


def logits_of_run(path: Path, images: Path) -> torch.Tensor:
    found = load_run(path)
    test, _ = load_labelled(
        str(images), found.card.preprocessing, classes=found.classes, split="test"
    )
    return torch.cat(list(found.logits(test))).double()


def counts_of(done: Rebalanced) -> torch.Tensor:
    return torch.tensor(done.num_trained).double()


@pytest.mark.parametrize("shares", [None, {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}])
def test_probabilities_are_those_of_the_run_times_new_over_old_shares(
    solved: Path, images: Path, tmp_path: Path, shares: dict[str, float] | None
) -> None:
    done = rebalance_run(solved, tmp_path / "new", shares)
    counts = counts_of(done)
    assert counts.tolist() == [48, 20, 8, 5, 3]  # a fifth of each class validates
    new = torch.tensor([1.0] * 5 if shares is None else list(shares.values())).double()
    expected = logits_of_run(solved, images).softmax(1) * new / counts
    found = logits_of_run(tmp_path / "new", images).softmax(1)
    assert torch.allclose(found, expected / expected.sum(1, keepdim=True), atol=1e-5)
    before, after = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (solved / "adapter", tmp_path / "new")
    )
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 1 and changed[0].endswith("bias")


def test_the_mean_over_classes_rises_where_all_are_alike(solved: Path, tmp_path: Path) -> None:
    done = rebalance_run(solved, solved / "rebalanced")
    assert done.num_val == 21 and done.before and done.after and not done.note
    before, after = evaluate_run(solved), evaluate_run(solved / "rebalanced")  # data of the run
    assert after["num_images"] == 150
    assert after["mean_per_class"] > before["mean_per_class"] + 0.05
    assert after["nll"] < before["nll"]
    for result in (before, after):
        recalls = [entry["recall"] for entry in result["per_class"]]
        assert result["mean_per_class"] == pytest.approx(np.mean(recalls), abs=1e-5)


def test_what_is_said_of_validation_is_so(solved: Path, images: Path, tmp_path: Path) -> None:
    shares = {"a": 5.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 2.0}
    done = rebalance_run(solved, tmp_path / "new", shares)
    for path, said in ((solved, done.before), (tmp_path / "new", done.after)):
        loaded = load_run(path)
        val = load_splits(str(images), loaded.card.preprocessing, seed=0).val
        assert val is not None and said is not None
        right = torch.cat(list(loaded.logits(val))).argmax(1).numpy() == val.labels
        recalls = [right[val.labels == label].mean() for label in range(5)]
        assert said.plain == pytest.approx(right.mean())
        assert said.at_shares == pytest.approx(np.average(recalls, weights=list(shares.values())))


def test_both_heads_of_a_distilled_network_count(images: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    name, size = "deit_tiny_distilled_patch16_224", {"img_size": 32, "num_classes": 0}
    save_file(timm.create_model(name, **size).state_dict(), tmp_path / "deit.safetensors")
    fit(data=str(images), backbone=f"{name}@{tmp_path / 'deit.safetensors'}", image_size=32,
        method="linear", out=tmp_path / "run")  # fmt: skip
    done = rebalance_run(tmp_path / "run", tmp_path / "new")
    moved = logits_of_run(tmp_path / "new", images) - logits_of_run(tmp_path / "run", images)
    shift = -counts_of(done).log()
    moved, shift = moved - moved.mean(1, keepdim=True), shift - shift.mean()
    assert torch.allclose(moved, shift.expand(150, 5), atol=1e-4)


@pytest.mark.parametrize("method", ["full", "bitfit", "rlrr", "ssf", "met", "vpt_deep", "lora"])
def test_every_kind_of_method_keeps_its_classifier_where_it_is_found(
    method: str, solved: Path, tmp_path: Path
) -> None:
    """Random adapters with a temperature; the images are those of the run."""
    torch.manual_seed(0)
    backbone = load_backbone(BUNDLED, num_classes=5)
    model = attach(backbone, method)
    with torch.no_grad():
        for weight in model.parameters():
            weight += weight.requires_grad * 0.02 * torch.randn_like(weight)
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "images.npz"):
        shutil.copy(solved / name, tmp_path / "run" / name)
    card = card_of(model, backbone, method=method, method_args={}, backbone_args={},
                   classes="abcde", temperature=1.7)  # fmt: skip
    save_adapter(model, tmp_path / "run" / "adapter", card)
    shift = -counts_of(rebalance_run(tmp_path / "run", tmp_path / "new")).log()
    inputs = torch.randn(3, 3, 32, 32)
    before, after = (
        load_run(tmp_path / name).outcome(inputs).tempered(1.7).double() for name in ("run", "new")
    )
    moved = after - before
    expected = (shift - shift.mean()).expand(3, 5)
    assert torch.allclose(moved - moved.mean(1, keepdim=True), expected, atol=1e-5)


def test_a_rebalanced_adapter_merges(solved: Path, images: Path, tmp_path: Path) -> None:
    rebalance_run(solved, tmp_path / "new")
    merge_run(tmp_path / "new", tmp_path / "merged")
    one, two = (logits_of_run(tmp_path / name, images) for name in ("new", "merged"))
    assert torch.allclose(one, two, atol=1e-5)


def test_an_adapter_in_a_run_is_exported_with_the_images_of_the_run(
    solved: Path, tmp_path: Path
) -> None:
    own, inside = (export_images(load_run(path)) for path in (solved, solved / "adapter"))
    assert own.checked.paths == inside.checked.paths and len(own.checked) == 21
    shutil.copytree(solved / "adapter", tmp_path / "alone" / "adapter")
    with pytest.raises(VituneError, match="only a run folder records its own"):
        export_images(load_run(tmp_path / "alone" / "adapter"))


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"a": 1.0, "f": 2.0}, "got class 'f', expected the run's"),
        ({"a": 1.0, "b": 1.0}, "nothing for 3 of the run's 5 classes, 'c' for one"),
        (dict.fromkeys("abcde", 0.0), "got 0 for 'a', expected a number above 0"),
        (dict.fromkeys("abcde", float("nan")), "got nan for 'a'"),
        (dict.fromkeys("abcde", "1"), "got '1' for 'a', expected a number above 0"),
        ([0.2] * 5, r"got \[0.2, .*, expected a share for each class, by name"),
    ],
)
def test_odd_shares_are_refused(solved: Path, tmp_path: Path, shares: Any, said: str) -> None:
    with pytest.raises(VituneError, match=said):
        rebalance_run(solved, tmp_path / "new", shares)
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_rebalanced_is_told_on_one_line(
    solved: Path, images: Path, tmp_path: Path, refused: Refused
) -> None:
    merge_run(solved, tmp_path / "merged")
    shutil.copytree(solved / "adapter", tmp_path / "alone" / "adapter")
    fit(data=str(images), backbone=BUNDLED, method="knn", out=tmp_path / "knn")
    for path, said in (
        ("merged", "got a merged model"),
        ("alone/adapter", "without its list of training images"),
        ("knn", "whose classifier (knn) has no bias to change"),
        ("nowhere", "nowhere"),
    ):
        assert said in refused("rebalance", tmp_path / path, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert "which exists, expected a new folder" in refused("rebalance", solved, "--out", solved)


def test_without_images_it_is_done_and_says_that_it_was_not_tried(
    solved: Path, images: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(solved, tmp_path / "run")
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace(str(images), str(tmp_path / "gone")))
    done = rebalance_run(copy, tmp_path / "new")
    assert done.before is None and "cannot be read" in done.note
    rebalance_run(solved, tmp_path / "tried")
    one, two = (logits_of_run(tmp_path / name, images) for name in ("new", "tried"))
    assert torch.equal(one, two)


def test_the_command_takes_pairs_and_tables(
    solved: Path, images: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "shares.csv"
    table.write_text("class,share\na,10\nb,1\nc,1\nd,1\ne,1\n")
    words = ["rebalance", str(solved), "--out"]
    assert run([*words, str(tmp_path / "pairs"), "--shares", "a=10,b=1,c=1,d=1,e=1"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "trained on 3 images of 'e' to 48 of 'a'" in told
    assert "on 21 validation images: at these shares" in told
    assert run([*words, str(tmp_path / "table"), "--shares", str(table)]) == 0
    one, two = (logits_of_run(tmp_path / name, images) for name in ("pairs", "table"))
    assert torch.equal(one, two)
    odd, split = tmp_path / "odd.csv", tmp_path / "split.csv"
    odd.write_bytes(b"a\xff,1\n")
    split.write_text("class;share\na;1\n")
    for given, said in (
        (odd, "expected a .csv file in UTF-8"),
        (split, "without a comma in it"),
        ("a=1,a=2", "got 'a' twice"),
        ("a=many", "got 'a=many', expected CLASS=NUMBER"),
        ("10", "got '10', expected CLASS=NUMBER"),
    ):
        assert said in refused(*words, tmp_path / "new", "--shares", given)


def test_shares_are_given_to_classes_whose_names_hold_spaces_and_commas() -> None:
    given = ["black cat=9,dog (small)=0.5, owl, barn=1", "x=y=2"]
    shares = {"black cat": 9, "dog (small)": 0.5, "owl, barn": 1, "x=y": 2}
    assert _shares(given) == shares
