"""What a run says of odd images, small sets and diverged weights, where a user looks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from vitune import cli
from vitune.cards import AdapterCard
from vitune.cli import run


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of two colours; one stands in both classes, some cannot be read."""
    root = tmp_path_factory.mktemp("odd") / "photos"
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("blue", "red")):
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 90, (20, 24, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    shutil.copy(root / "blue/1.png", root / "red/1.png")
    (root / "red" / "bad[bold].jpg").write_bytes(b"no")
    (root / "red" / "clip.mov").write_bytes(b"no")
    return root


@pytest.fixture(scope="module")
def trained(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "odd"
    words = ["--data", str(odd), "--out", str(out), "--epochs", "2", "--skip-bad-images"]
    assert run(["train", *words]) == 0
    return out


def test_fewer_images_than_the_default_batch_are_one_batch(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["batch_size"] == summary["num_train"] == 19
    assert yaml.safe_load((trained / "config.yaml").read_text())["batch_size"] == 19


def test_a_batch_that_was_asked_for_is_not_made_smaller(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(odd), "--out", str(tmp_path / "out"), "--skip-bad-images"]
    assert run([*words, "--batch-size", "20"]) == 2
    assert "--batch-size: got 20, expected at most the 19" in capsys.readouterr().err


def test_compare_takes_few_images_too(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(odd, whole)
    (whole / "red" / "bad[bold].jpg").unlink()
    words = ["--methods", "linear", "--epochs", "1", "--seeds", "1", "--out", str(tmp_path / "c")]
    assert run(["compare", "--data", str(whole), *words]) == 0
    assert capsys.readouterr().out.count("is a demonstration network") == 1  # own images on it


def test_odd_images_are_named_on_the_terminal_in_summary_and_report(
    odd: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(odd), "--out", str(tmp_path / "out"), "--epochs", "1"]
    assert run(["train", *words, "--skip-bad-images"]) == 0
    shown = capsys.readouterr().out
    texts = {
        "skipped": "1 unreadable image skipped",
        "two_classes": "1 image in two classes",
        "unread": "1 file of unread kinds",
    }
    assert f"{texts['skipped']}: {odd}/red/bad[bold].jpg" in shown
    assert f"{texts['two_classes']}: {odd}/blue/1.png (blue) is {odd}/red/1.png (red)" in shown
    remarks = {r["kind"]: r for r in json.loads((trained / "summary.json").read_text())["remarks"]}
    page = (trained / "report.html").read_text()
    for kind, text in texts.items():
        assert remarks[kind]["text"].startswith(text)
        assert text in page and Path(remarks[kind]["names"][0]).name in page


def test_evaluate_and_predict_name_what_they_skip(
    odd: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(odd, other)
    (other / "blue" / "1.png").write_bytes((other / "blue" / "2.png").read_bytes()[:-40])
    assert run(["evaluate", str(trained), "--data", str(other), "--skip-bad-images"]) == 0
    shown = capsys.readouterr().out
    assert "2 unreadable images skipped" in shown and "bad[bold].jpg" in shown
    (file,) = (trained / "evaluation").glob("*.json")
    assert [Path(name).name for name in json.loads(file.read_text())["skipped"]] == [
        "1.png",
        "bad[bold].jpg",
    ]
    assert run(["predict", str(trained), str(other), "--skip-bad-images"]) == 0
    out, error = capsys.readouterr()
    assert "bad[bold].jpg" in error and "bad[bold]" not in out and out.startswith("path,class_1")


def test_a_bad_file_is_no_new_image_to_score(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of it trained the run, yet the validation images are what is left to score.

    The run skipped it, so its own images are read without being told so again.
    """
    copy = tmp_path / "run"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("evaluation"))
    assert run(["evaluate", str(copy)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "too few to state a calibration error" in shown
    assert "run's validation images" in shown and "1 unreadable image skipped" in shown


def test_a_run_that_lost_its_list_of_images_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("evaluation"))
    (copy / "images.npz").unlink()
    assert run(["evaluate", str(copy)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "trained on these images: images.npz is missing from the run folder." in shown


@pytest.mark.parametrize("name", ["scale_out", "shift", "head.weight"])
def test_analyze_refuses_weights_that_diverged(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained / "adapter", adapter)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if name in key)
    tensors[key].view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    AdapterCard.read(adapter).write(adapter)  # its checksums are those of a run that diverged
    assert run(["analyze", str(adapter), "--out", str(tmp_path / "a"), "--num-images", "0"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "got NaN or infinity in 1 tensors" in error


def test_an_allocation_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GB")

    monkeypatch.setattr(cli, "app", fails)
    assert run(["train"]) == 2
    assert "out of memory. Lower --batch-size" in capsys.readouterr().err

    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(cli, "app", breaks)
    with pytest.raises(RuntimeError, match="a defect"):
        run(["train"])


def test_a_class_of_one_image_can_be_trained_as_the_hint_says(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    shutil.copytree(odd, few)
    (few / "green").mkdir()
    shutil.move(few / "red/3.png", few / "green/3.png")
    (few / "red" / "bad[bold].jpg").unlink()
    words = ["--data", str(few), "--epochs", "1"]
    compare = ["compare", *words, "--methods", "linear,bitfit", "--seeds", "1"]
    assert run([*compare, "--out", str(tmp_path / "compared")]) == 2
    assert "or train on all images with --refit" in capsys.readouterr().err
    assert run(["train", *words, "--out", str(tmp_path / "refitted"), "--refit"]) == 0
    assert "absent from validation" not in capsys.readouterr().out
    assert run(["train", *words, "--out", str(tmp_path / "held-out")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "1 class has one image (green): used for training, absent from validation." in told
