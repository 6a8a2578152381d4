"""The verbs as a user calls them: one folder of images from training to a merged model."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_images import CLASSES, paint
from PIL import Image

from vitune.cards import AdapterCard
from vitune.cli import run


def read_rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("photos"), 12, seed=0)


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "photos"
    words = ["--data", str(photos), "--out", str(out), "--epochs", "3", "--start", "plain"]
    assert run([*TRAIN, *words, "--snapshot-every-epochs", "2"]) == 0
    return out


TRAIN = ["train", "--lr", "1e-2", "--batch-size", "8"]
Refused = Callable[..., str]


def test_a_run_holds_what_it_should(trained: Path) -> None:
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "images.npz",
        "metrics.jsonl",
        "summary.json",
        "report.html",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/vitune.json",
        "checkpoint/state.json",
        "checkpoint/tensors.safetensors",
        *(
            f"snapshots/epoch-00{epoch}/{file}"
            for epoch in (0, 2, 3)
            for file in ("adapter_config.json", "adapter_model.safetensors", "vitune.json")
        ),
    } == names
    card = json.loads((trained / "adapter" / "vitune.json").read_text())
    assert tuple(card["classes"]) == CLASSES
    assert card["preprocessing"]["image_size"] == [32, 32]
    assert card["fingerprint"].startswith("v1-")


def test_evaluate_predict_merge_and_info(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unseen = paint(tmp_path / "unseen", 4, seed=1)
    assert run(["evaluate", str(trained), "--data", str(unseen)]) == 0
    assert "accuracy 100.0 %" in capsys.readouterr().out
    (result,) = (trained / "evaluation").glob("*.json")
    assert json.loads(result.read_text())["num_images"] == 12

    predictions = tmp_path / "predictions.csv"
    arguments = ["predict", str(trained), str(unseen), "--top-k", "2", "--out", str(predictions)]
    assert run(arguments) == 0
    rows = read_rows(predictions)
    assert len(rows) == 12
    assert all(Path(row["path"]).parent.name == row["class_1"] for row in rows)
    assert all(float(row["probability_1"]) >= float(row["probability_2"]) for row in rows)

    merged = tmp_path / "merged"
    assert run(["merge", str(trained), "--out", str(merged)]) == 0
    again = tmp_path / "again.csv"
    assert run(["predict", str(merged), str(unseen), "--top-k", "2", "--out", str(again)]) == 0
    for one, other in zip(rows, read_rows(again), strict=True):
        assert one["class_1"] == other["class_1"]
        assert float(one["probability_1"]) == pytest.approx(float(other["probability_1"]), abs=1e-4)

    capsys.readouterr()
    for path in (trained, merged):
        assert run(["info", str(path), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["method"] == "rlrr" and facts["classes"] == list(CLASSES)
        assert isinstance(facts["temperature"], float)
        assert facts["input"]["image_size"] == [32, 32]
        assert (facts["fingerprint"] is None) is (path == merged)
        assert run(["info", str(path)]) == 0
        shown = capsys.readouterr().out
        assert "32 x 32 px, " in shown and ("none (merged)" in shown) is (path == merged)


def test_merging_says_that_other_libraries_keep_every_token(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for tokens, is_said in (("merge:0.5:train", False), ("merge:0.5", True)):
        copy = shutil.copytree(trained / "adapter", tmp_path / f"adapter {tokens}")
        replace(AdapterCard.read(copy), tokens=tokens).write(copy)
        capsys.readouterr()
        assert run(["merge", str(copy), "--out", str(tmp_path / f"merged {tokens}")]) == 0
        assert ("other libraries keep every token" in capsys.readouterr().out) is is_said


def test_combine_is_arithmetic_on_folders(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "half"
    words = ["combine", str(trained), str(trained), "--weights", "0.5,0.5", "--out", str(out)]
    assert run(words) == 0
    assert run(["info", str(out)]) == 0
    from safetensors.torch import load_file

    one = load_file(trained / "adapter" / "adapter_model.safetensors")
    same = load_file(out / "adapter_model.safetensors")
    assert one.keys() == same.keys()
    assert all(value.allclose(same[name], atol=1e-6) for name, value in one.items())


def test_combine_says_whose_tokens_and_preprocessing_apply(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = json.loads((trained / "adapter" / "vitune.json").read_text())
    cropped = {**values["preprocessing"], "crop_mode": "center"}
    for name, entries, told in (
        ("equal", {}, ""),
        ("training", {"tokens": "merge:0.5:train"}, ""),
        ("merged", {"tokens": "merge:0.5"}, "have different tokens: the first's apply (keep)."),
        ("cropped", {"preprocessing": cropped}, "or preprocessing: the first's apply."),
    ):
        other, out = tmp_path / name, tmp_path / f"{name}-out"
        shutil.copytree(trained / "adapter", other)
        (other / "vitune.json").write_text(json.dumps({**values, **entries, "checksums": {}}))
        capsys.readouterr()
        words = ["combine", str(trained), str(other), "--weights", "0.5,0.5", "--out", str(out)]
        assert run(words) == 0
        notes = " ".join(capsys.readouterr().out.split())
        assert told in notes and ("different" in notes) == bool(told)


def test_analyze_joins_the_report(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["analyze", str(trained), "--num-images", "6"]) == 0
    out = capsys.readouterr().out
    assert "attn_out" in out and "fc1" in out
    assert (trained / "analysis" / "spectrum.csv").is_file()
    page = (trained / "report.html").read_text()
    assert "spectr" in page.lower() and "Left basis, spectrum, right basis" in page
    assert "rlrr, epoch 0" in out and "rlrr, epoch 3" in out
    rows = read_rows(trained / "analysis" / "maps.csv")
    assert [row["epoch"] for row in rows] == ["0", "2", "3", ""]
    assert {row["method"] for row in rows} == {"rlrr"}
    figures = [{k: v for k, v in row.items() if k != "epoch"} for row in rows]
    assert figures[2] == figures[3], "the last epoch's weights are those kept"
    assert figures[0] != figures[1] != figures[2]
    assert float(rows[0]["relative_deviation"]) > 0.01, "RLRR does not start at the base"
    assert (trained / "analysis" / "along-training.svg").is_file()
    assert run(["analyze", str(trained), "--num-images", "0", "--along", "0"]) == 0
    assert [row["epoch"] for row in read_rows(trained / "analysis" / "maps.csv")] == [""]


def test_analyze_takes_the_rule_for_intruders(trained: Path, refused: Refused) -> None:
    assert "--intruder-cosine: got 2.0" in refused("analyze", trained, "--intruder-cosine", 2)
    assert "--intruder-side: got 'up'" in refused("analyze", trained, "--intruder-side", "up")
    assert run(
        ["analyze", str(trained), "--num-images", "0", "--along", "0",
         "--intruder-cosine", "0.5", "--intruder-side", "left"]
    ) == 0  # fmt: skip
    record = json.loads((trained / "analysis" / "spectrum.json").read_text())
    (found,) = record["runs"].values()
    assert found["intruder_rule"] == {"cosine": 0.5, "side": "left", "num_vectors": 10}


def test_wrong_words_are_named_on_one_line(refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "unknown command 'trian'. Did you mean train?" in refused("trian")
    assert "unknown option --epoch." in refused("train", "--epoch", 3)
    assert "--epochs" in refused("train", "--epoch", 3)
    assert "Missing option '--out'" in refused("train", "--data", "x")
    message = refused(*TRAIN, "--data", tmp_path / "nowhere", "--out", out)
    assert "nowhere" in message
    message = refused(*TRAIN, "--data", "demo:digits", "--method", "rllr", "--out", out)
    assert "Did you mean rlrr" in message
    message = refused(
        *TRAIN, "--data", "demo:digits", "--backbone", "vit_base_patch16", "--out", out
    )
    assert "vit_base_patch16_224" in message
    message = refused(*TRAIN, "--data", "demo:digits", "--method-arg", "rnak=2", "--out", out)
    assert "Did you mean rank" in message
    assert "expected NAME=VALUE" in refused(
        *TRAIN, "--data", "x", "--method-arg", "r", "--out", out
    )
    message = refused(*TRAIN, "--data", "demo:digits", "--batch-size", "500", "--out", out)
    assert "--batch-size: got 500, expected at most the 160" in message
    message = refused(*TRAIN, "--data", "demo:digits", "--config", "absent.yaml", "--out", out)
    assert "expected an existing YAML file" in message
    assert not out.exists()


def test_wrong_images_are_named_on_one_line(refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in refused(*TRAIN, "--data", empty, "--out", out)
    broken = paint(tmp_path / "broken", 4, seed=2)
    (broken / "red" / "bad.jpg").write_bytes(b"\xff\xd8 not a picture")
    assert "bad.jpg" in refused(*TRAIN, "--data", broken, "--out", out)
    lonely = paint(tmp_path / "lonely", 4, seed=3)
    for index in range(1, 4):
        (lonely / "blue" / f"{index}.png").unlink()
    message = refused(*TRAIN, "--data", lonely, "--batch-size", "99", "--out", out)
    assert "--batch-size: got 99" in message, "a class with one image is no longer refused"
    shared = paint(tmp_path / "shared" / "train", 4, seed=4).parent
    paint(shared / "val", 4, seed=4)
    message = refused(*TRAIN, "--data", shared, "--out", out)
    assert "12 images of val" in message and "share no image" in message
    bomb = paint(tmp_path / "bomb", 4, seed=5)
    Image.new("1", (20_000, 10_000)).save(bomb / "red" / "huge.png")
    assert "huge.png" in refused(*TRAIN, "--data", bomb, "--out", out)
    assert not out.exists()


def test_bad_images_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    broken = paint(tmp_path / "broken", 6, seed=2)
    (broken / "red" / "bad.jpg").write_bytes(b"\xff\xd8 not a picture")
    arguments = ["--data", str(broken), "--epochs", "1", "--out", str(tmp_path / "out")]
    assert run([*TRAIN, *arguments, "--skip-bad-images"]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["skipped_images"] == 1


def test_nothing_of_a_run_is_overwritten(refused: Refused, trained: Path, photos: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert "--resume" in refused(*TRAIN, "--data", photos, "--out", trained)
    assert "expected a new folder" in refused("merge", trained, "--out", trained)
    assert {path: path.read_bytes() for path in before} == before


def test_other_classes_and_folders_are_refused(
    refused: Refused, trained: Path, tmp_path: Path
) -> None:
    other = paint(tmp_path / "other", 3, seed=6)
    (other / "red").rename(other / "purple")
    assert "purple" in refused("evaluate", trained, "--data", other)
    assert "expected an existing run folder" in refused("info", tmp_path / "nothing")
    assert "--top-k: got 9" in refused("predict", trained, other, "--top-k", "9")


def test_another_backbone_or_damaged_tensors_are_refused(
    refused: Refused, trained: Path, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(trained / "adapter", copy)
    card = json.loads((copy / "vitune.json").read_text())
    other = {**card, "fingerprint": "v1-0000000000000000", "checksums": {}}
    (copy / "vitune.json").write_text(json.dumps(other))
    message = refused("merge", copy, "--out", tmp_path / "m")
    assert "v1-0000000000000000" in message and card["fingerprint"] in message
    assert "--force" in message
    with pytest.warns(UserWarning, match="Loading it anyway"):
        assert run(["merge", str(copy), "--out", str(tmp_path / "m"), "--force"]) == 0

    (copy / "vitune.json").write_text(json.dumps(card))
    tensors = load_file(copy / "adapter_model.safetensors")
    names = sorted(tensors)
    tensors["stray"] = tensors.pop(names[0])
    tensors[names[1]] = tensors[names[1]].flatten()[:-1].clone()
    save_file(tensors, copy / "adapter_model.safetensors")
    message = refused("info", tmp_path / "none")
    message = refused("merge", copy, "--out", tmp_path / "m2")
    assert f"missing: {names[0]}" in message and "not expected: stray" in message
    assert f"of the wrong shape: {names[1]}" in message


def test_help_does_not_load_pytorch() -> None:
    code = (
        "import sys; from vitune.cli import run;"
        "assert run(['train', '--help']) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--method-arg" in done.stdout
