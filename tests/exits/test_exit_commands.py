"""Exits as a user meets them: added to a run, calibrated, evaluated, refused."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vitune import inference
from vitune.cards import AdapterCard
from vitune.cli import run
from vitune.data import load_labelled, load_splits
from vitune.errors import VituneError
from vitune.exits import ExitRecipe, ExitsFolder, find_trunk
from vitune.inference import (
    LoadedRun,
    add_exits,
    calibrate_exits,
    evaluate_run,
    exit_scores,
    load_run,
    merge_run,
)

CLASSES = ("blue", "green", "red")
Refused = Callable[..., str]
SMALL = ("--batch-size", "8", "--image-size", "16")


def paint(folder: Path, per_class: int, seed: int, classes: tuple[str, ...] = CLASSES) -> Path:
    """An ImageFolder of noisy colour squares, some of them hardly coloured."""
    generator = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            pixels = generator.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[..., 2 - CLASSES.index(name)] += generator.integers(1, 150, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{seed}-{index}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("photos"), 12, seed=0)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("held_out"), 25, seed=1)


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["--data", str(photos), "--epochs", "2", *SMALL, "--out", str(out)]
    assert run(["train", *words]) == 0
    return out


@pytest.fixture(scope="module")
def with_exits(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exits") / "run2"
    words = ["--at", "2,4", "--epochs", "30", "--out", str(out)]
    assert run(["exits", "add", str(trained), *words]) == 0
    return out


@pytest.fixture(autouse=True)
def _short_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exit_scores, "TIMED_SECONDS", 0.2)


@pytest.fixture
def copy(with_exits: Path, tmp_path: Path) -> Path:
    """The run with exits, to be written to."""
    return Path(shutil.copytree(with_exits, tmp_path / "copy"))


def test_the_last_exit_is_bit_for_bit_the_run(
    trained: Path, with_exits: Path, held_out: Path
) -> None:
    plain, full = load_run(trained), load_run(with_exits, exits="full")
    split, _ = load_labelled(held_out, plain.card.preprocessing, classes=plain.classes)
    expected = torch.cat(list(plain.logits(split)))
    assert torch.equal(torch.cat(list(full.logits(split))), expected)
    leaving = load_run(with_exits)
    assert leaving.exits is not None  # not calibrated: no image leaves early
    assert torch.equal(torch.cat(list(leaving.logits(split))), expected)


def test_python_takes_paths_wherever_it_takes_texts(copy: Path, held_out: Path) -> None:
    found = calibrate_exits(copy, held_out, budget=0.6)
    assert found.data == str(held_out)
    result = evaluate_run(copy, held_out, exits="full")
    with pytest.raises(VituneError, match=r"--beside: got '.*copy' for a run without exits"):
        evaluate_run(copy, held_out, exits="full", beside=copy)
    assert result["data"] == str(held_out) and list((copy / "evaluation").glob("*.json"))


def test_calibrate_evaluate_predict_and_info(
    copy: Path, held_out: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(held_out), "--risk", "0.1", "--delta", "0.1"]
    assert run(["exits", "calibrate", str(copy), *words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "a risk of 0.1 at delta 0.1 needs at least 22 images" in out
    assert "certificate: at most 10.0 % of images like these leave early" in out
    assert re.search(
        r"on these images: exit 2 [\d.]+ %, exit 4 [\d.]+ %, last [\d.]+ %; mean cost", out
    )
    proof = json.loads(ExitsFolder(copy).thresholds.read_text())["certificate"]
    assert proof["num_images"] == 75 and proof["definition"] == "disagreement"

    others = paint(tmp_path / "others", 20, seed=2)
    arguments = ["evaluate", str(copy), "--data", str(others), "--beside", str(trained)]
    assert run(arguments) == 0
    out = capsys.readouterr().out
    assert "exit    2:" in out and "cut off at 2" in out and "ms per image" in out
    (file,) = (copy / "evaluation").glob("*.json")
    found = json.loads(file.read_text())
    exits = found["exits"]
    assert sum(row["share"] for row in exits["exits"]) == pytest.approx(1)
    assert exits["exits"][-1]["share"] < 1, "somebody must leave for this test to see anything"
    total = sum(row["share"] * row["accuracy_of_leaving"] for row in exits["exits"])
    assert total == pytest.approx(found["top1"]) == pytest.approx(exits["systems"][0]["accuracy"])
    kinds = [row["kind"] for row in exits["systems"]]
    assert kinds == ["exits", "full", "cut", "cut", "rival"]
    assert all(row["ms_per_image"] > 0 for row in exits["systems"])
    assert exits["systems"][1]["accuracy"] == exits["systems"][-1]["accuracy"]
    assert not exits["on_calibration_images"]

    assert run(["predict", str(copy), str(others), "--out", str(tmp_path / "a.csv")]) == 0
    full = ["predict", str(copy), str(others), "--exits", "full", "--out", str(tmp_path / "b.csv")]
    assert run(full) == 0
    plain = ["predict", str(trained), str(others), "--out", str(tmp_path / "c.csv")]
    assert run(plain) == 0
    texts = [(tmp_path / f"{name}.csv").read_text() for name in "abc"]
    assert texts[1] == texts[2] != texts[0]
    capsys.readouterr()
    assert run(["info", str(copy), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["exits"] == [2, 4]
    assert all(value is None or 0 <= value <= 1 for value in facts["thresholds"])
    assert run(["info", str(copy)]) == 0
    assert "after 2, 4 blocks" in capsys.readouterr().out
    assert facts["certificate"].startswith("disagreement of at most 10.00 % of images")


def test_a_certificate_counts_groups_not_images(
    copy: Path, held_out: Path, refused: Refused
) -> None:
    """75 images of 25 groups are 25 pieces of evidence: too few for what 75 would certify."""
    words = ["exits", "calibrate", str(copy), "--data", str(held_out), "--groups", r"-(\d+)"]
    told = refused(*words, "--risk", "0.05", "--delta", "0.1")
    assert "got 25 images, expected at least 45" in told
    assert run([*words, "--risk", "0.2", "--delta", "0.1"]) == 0
    proof = json.loads(ExitsFolder(copy).thresholds.read_text())["certificate"]
    assert proof["num_images"] == 25


def test_a_budget_promises_nothing(
    copy: Path, held_out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(held_out), "--budget", "0.7"]
    assert run(["exits", "calibrate", str(copy), *words]) == 0
    assert "their risk is not certified" in " ".join(capsys.readouterr().out.split())
    found = json.loads(ExitsFolder(copy).thresholds.read_text())
    assert found["certificate"] is None and found["expected"]["cost"] <= 0.7


def test_images_that_took_part_are_refused(
    copy: Path, photos: Path, held_out: Path, tmp_path: Path, refused: Refused
) -> None:
    """Under other names and in another folder: the content counts."""
    mixed = Path(shutil.copytree(held_out, tmp_path / "mixed"))
    shutil.copyfile(photos / "red" / "0-3.png", mixed / "red" / "another name.png")
    arguments = ["exits", "calibrate", copy, "--data", mixed, "--risk", "0.1"]
    error = refused(*arguments)
    assert "got 1 of 76 images" in error and "--skip-seen" in error
    assert run([*map(str, arguments), "--skip-seen"]) == 0
    assert json.loads(ExitsFolder(copy).thresholds.read_text())["certificate"]["num_images"] == 75
    assert "got 36 of 36 images" in refused(
        "exits", "calibrate", copy, "--data", photos, "--risk", "0.1", "--skip-seen"
    )
    # The hashes are kept with the exits: the photos themselves may be gone.
    (copy / "config.yaml").write_text("data: /nowhere\n")
    assert "got 1 of 76 images" in refused(*arguments)


def test_what_cannot_be(
    copy: Path, trained: Path, held_out: Path, tmp_path: Path, refused: Refused
) -> None:
    data = ["--data", held_out]
    add = ["exits", "add", trained, "--out", tmp_path / "new"]
    assert "--at: got '2,6', expected different numbers of blocks from 1 to 5" in refused(
        *add, "--at", "2,6"
    )
    assert "--at: got 'two', expected numbers of blocks" in refused(*add, "--at", "two")
    assert "distil: got 2.0" in refused(*add, "--at", "2", "--distil", "2")
    assert "which has exits" in refused("exits", "add", copy, "--at", "2", "--out", tmp_path / "x")
    assert "which exists" in refused("exits", "add", trained, "--at", "2", "--out", copy)
    assert not (tmp_path / "new").exists()
    calibrate = ["exits", "calibrate"]
    assert "without exits" in refused(*calibrate, trained, *data, "--risk", "0.1")
    assert "got neither of --risk and --budget" in refused(*calibrate, copy, *data)
    assert "expected at least 149" in refused(*calibrate, copy, *data, "--risk", "0.02")
    assert "--risk: got 1.5" in refused(*calibrate, copy, *data, "--risk", "1.5")
    one_class = paint(tmp_path / "one", 30, seed=5, classes=("red",))
    assert "one class" in refused(*calibrate, copy, "--data", one_class, "--risk", "0.2")
    assert "--exits: got 'none'" in refused("evaluate", copy, *data, "--exits", "none")
    assert "run without exits" in refused("evaluate", trained, *data, "--beside", trained)


def test_threads_and_copies_of_a_run_answer_like_it(copy: Path, held_out: Path) -> None:
    calibrate_exits(copy, held_out, budget=0.6)
    run_ = load_run(copy)
    split, _ = load_labelled(held_out, run_.card.preprocessing, classes=run_.classes)

    def logits(one: LoadedRun) -> torch.Tensor:
        return torch.cat(list(one.logits(split, batch_size=8)))

    expected = logits(run_)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(logits, [run_] * 12))
    halved = load_run(copy)
    halved.model.bfloat16()
    apart_by = (logits(halved).softmax(1) - expected.softmax(1)).abs().amax(1)
    assert apart_by.median() < 0.01, "but for images that leave at another exit"
    sent, apart = pickle.loads(pickle.dumps(run_)), deepcopy(run_)
    for parameter in run_.model.parameters():
        parameter.zero_()
    assert torch.equal(logits(sent), expected) and torch.equal(logits(apart), expected)


def in_float64(call: Callable[[], Any]) -> Any:
    """What a call returns while float64 is the default."""
    torch.set_default_dtype(torch.float64)
    try:
        return call()
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_callers_modes_do_not_matter(
    trained: Path, copy: Path, held_out: Path, tmp_path: Path
) -> None:
    recipe = ExitRecipe(epochs=2)
    with torch.inference_mode():
        add_exits(trained, [2], tmp_path / "inference", recipe=recipe)
    in_float64(lambda: add_exits(trained, [2], tmp_path / "float64", recipe=recipe))
    add_exits(trained, [2], tmp_path / "usual", recipe=recipe)
    usual = load_file(tmp_path / "usual" / "exits" / "heads.safetensors")
    for mode in ("inference", "float64"):
        found = load_file(tmp_path / mode / "exits" / "heads.safetensors")
        assert all(torch.equal(found[name], value) for name, value in usual.items())
    calibrate_exits(copy, held_out, budget=0.6)
    run_ = load_run(copy)
    split, _ = load_labelled(held_out, run_.card.preprocessing, classes=run_.classes)
    expected = torch.cat(list(run_.logits(split)))
    found = in_float64(lambda: torch.cat(list(load_run(copy).logits(split))))
    assert torch.equal(found, expected)
    assert in_float64(lambda: merge_run(trained, tmp_path / "merged")) < 1e-5


def test_shares_are_numbers_of_any_library(copy: Path, held_out: Path) -> None:
    assert calibrate_exits(copy, held_out, budget=np.float32(0.5)).budget == 0.5
    for wrong in ({"budget": "0.5"}, {"risk": None, "budget": True}, {"risk": 0.1, "delta": "x"}):
        with pytest.raises(VituneError, match=r"^--.*: got .*, expected a number between 0 and 1"):
            calibrate_exits(copy, held_out, **wrong)


def test_exits_are_numbers_of_any_library(trained: Path) -> None:
    trunk = find_trunk(load_run(trained, merge=False).model)
    assert [type(after) for after in trunk.check(np.array([4, 2]))] == [int, int]
    assert trunk.check(np.array([4, 2])) == trunk.check(torch.tensor([2, 4])) == (2, 4)
    for wrong in ([2.5], ["2"], [True], [None], np.array([])):
        with pytest.raises(VituneError, match=r"^--at: got .*, expected different numbers of"):
            trunk.check(wrong)


def test_a_run_whose_method_mixes_tokens(photos: Path, tmp_path: Path, refused: Refused) -> None:
    words = ["--data", str(photos), "--epochs", "1", *SMALL, "--no-choose-best"]
    assert run(["train", "--method", "lily", *words, "--out", str(tmp_path / "run")]) == 0
    error = refused("exits", "add", tmp_path / "run", "--at", "2", "--out", tmp_path / "new")
    assert "got a method that mixes tokens" in error and not (tmp_path / "new").exists()


def test_thresholds_of_another_run(
    copy: Path, trained: Path, held_out: Path, tmp_path: Path, refused: Refused
) -> None:
    words = ["--data", str(held_out), "--risk", "0.1"]
    assert run(["exits", "calibrate", str(copy), *words]) == 0
    other = tmp_path / "other"
    add = ["exits", "add", str(trained), "--at", "2,4", "--epochs", "2", "--out", str(other)]
    assert run(add) == 0
    shutil.copyfile(ExitsFolder(copy).thresholds, ExitsFolder(other).thresholds)
    for verb in (["evaluate", other, "--data", held_out], ["predict", other, held_out]):
        assert "got thresholds of another run" in refused(*verb)
    words = ["--exits", "full", "--out", str(tmp_path / "p.csv")]
    assert run(["predict", str(other), str(held_out), *words]) == 0


def test_a_run_with_exits_knows_its_images_as_the_run_did(
    copy: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """29 of the 36 images trained it: they are left out, as `evaluate` leaves them out of RUN."""
    assert run(["evaluate", str(copy), "--data", str(photos)]) == 0
    assert "29" in capsys.readouterr().out
    (scores,) = (copy / "evaluation").glob("*.json")
    found = json.loads(scores.read_text())
    assert found["seen"] == {"trained": 0, "watched": 7} and found["left_out"]["trained"] == 29


def test_images_are_known_by_what_they_were_in_training(
    trained: Path, tmp_path: Path, refused: Refused
) -> None:
    """The run's own list tells, not what lies in its data folder now."""
    kept, out = tmp_path / "kept", tmp_path / "run"
    data = paint(tmp_path / "data", 12, seed=5)
    words = ["--epochs", "1", *SMALL, "--out", str(out)]
    assert run(["train", "--data", str(data), *words]) == 0
    shutil.copytree(data, kept)
    shutil.rmtree(data)
    paint(data, 12, seed=6)  # other pictures under the same folder
    exits = tmp_path / "exits"
    add = ["exits", "add", str(out), "--at", "2", "--epochs", "1", "--out", str(exits)]
    assert run([*add, "--data", str(paint(tmp_path / "more", 12, seed=7))]) == 0
    told = refused("exits", "calibrate", exits, "--data", kept, "--risk", "0.1")
    assert "got 36 of 36 images" in told and "took part in training" in told


def test_exits_are_judged_on_no_image_that_trained_the_run(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    """In a folder that has grown, others are held out than in training."""
    grown = Path(shutil.copytree(photos, tmp_path / "grown"))
    paint(grown, 1, seed=8)
    recipe = ExitRecipe(epochs=1)
    record = add_exits(trained, (2,), tmp_path / "exits", data=str(grown), recipe=recipe)
    splits = load_splits(
        str(grown), load_run(trained).card.preprocessing, seed=0, include=("train", "val")
    )
    fresh, _ = inference.held_out(trained, splits.val, otherwise=False)
    assert 0 < len(fresh) < len(splits.val)
    assert record["num_val"] == len(fresh) and not record["val_was_trained_on"]


def test_an_adapter_that_changed_behind_its_exits(
    copy: Path, held_out: Path, refused: Refused
) -> None:
    """What `vitune train --resume` would do to the folder, say."""
    file = copy / "adapter" / "adapter_model.safetensors"
    save_file({name: value + 0.01 for name, value in load_file(file).items()}, file)
    AdapterCard.read(file.parent).write(file.parent)
    assert "got exits of another adapter" in refused("predict", copy, held_out)


def test_merging_says_that_exits_stay_behind(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["merge", str(copy), "--out", f"{tmp_path}/merged/"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "its exits are not merged" in told
    assert f"merged: {tmp_path}/merged/model.safetensors" in told


def test_damaged_files(copy: Path, held_out: Path, refused: Refused) -> None:
    folder = ExitsFolder(copy)
    folder.heads.write_bytes(b"torn")
    assert "heads that cannot be used" in refused("predict", copy, held_out)
    folder.record.write_text("{")
    assert "got a damaged file" in refused("predict", copy, held_out)


def test_met_brings_its_own_exits(
    photos: Path, held_out: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "met"
    words = ["--data", str(photos), "--epochs", "2", *SMALL, "--lr", "1e-2"]
    arguments = ["--method-arg", "exits=2,4", "--method-arg", "rank=8"]
    assert run(["train", "--method", "met", *words, *arguments, "--out", str(out)]) == 0
    words = ["--data", str(held_out), "--risk", "0.2", "--of", "error-gap"]
    assert run(["exits", "calibrate", str(out), *words]) == 0
    loaded = load_run(out)
    assert loaded.exits is not None and [place.after for place in loaded.exits.exits] == [2, 4]
    assert run(["evaluate", str(out), "--data", str(held_out)]) == 0
    adapter = out / "adapter"
    replace(AdapterCard.read(adapter), tokens="merge:0.5").write(adapter)
    told = refused("exits", "calibrate", out, "--data", held_out, "--budget", "0.7")
    assert "with --tokens merge:0.5, expected one that keeps every token" in told
