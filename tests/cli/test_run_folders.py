"""What the command line does to files: never a user's harm, always one line, always a way on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cli_images import TRAIN, Failed, paint
from PIL import Image
from safetensors.torch import save_file

from vitune.cli import run
from vitune.report import read_run
from vitune.report.headline import headline


class TestImagesThatTrained:
    """Training images are told by content, wherever they lie and whatever they are called."""

    def result(self, folder: Path, name: str) -> dict[str, object]:
        found: dict[str, object] = json.loads((folder / "evaluation" / f"{name}.json").read_text())
        return found

    def test_a_run_s_own_data_gives_its_validation_images(
        self, copy: Path, photos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["evaluate", str(copy)]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert "on 6 images" in told and "These images are the run's validation images" in told
        assert "24 images that were used for training are left out." in told
        result = self.result(copy, f"{photos.name}-val")
        assert result["num_images"] == 6
        assert result["seen"] == {"trained": 0, "watched": 6}
        assert result["left_out"] == {"trained": 24, "watched": 0}
        page = (copy / "report.html").read_text()
        assert "These images are the run&#39;s validation images" in page

    def test_scores_of_weights_that_were_trained_on_are_out_of_date(
        self, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        new = str(paint(tmp_path / "unseen-test", 2, seed=9))
        assert run(["evaluate", str(copy), "--data", new]) == 0
        (first,) = read_run(copy).evaluations
        assert not first.is_outdated
        resumed = ["train", "--out", str(copy), "--resume"]
        assert run(resumed) == 0, "nothing was left to do"
        assert not read_run(copy).evaluations[0].is_outdated
        assert run([*resumed, "--epochs", "4"]) == 0
        results = read_run(copy)
        assert results.evaluations[0].is_outdated
        told = headline(results)
        assert told is not None and told.name == "validation"
        capsys.readouterr()
        assert run(["info", str(copy)]) == 0
        assert "Earlier weights were scored" in " ".join(capsys.readouterr().out.split())
        assert run(["evaluate", str(copy), "--data", new]) == 0
        told = headline(read_run(copy))
        assert told is not None and told.name == first.name

    def test_images_in_another_class_than_in_training_are_told(
        self, copy: Path, photos: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        for name, new in (("blue", "red"), ("red", "blue"), ("green", "green")):
            shutil.copytree(photos / name, other / new)
        with pytest.warns(UserWarning, match=r"4 images of the run had another .* was in 'red'\. "):
            assert run(["evaluate", str(copy), "--data", str(other)]) == 0

    def test_a_score_that_cannot_be_stored_is_printed(
        self,
        copy: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Of a colleague's run, which others may only read."""

        def fails(path: Path, content: str) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr("vitune.inference.run_scores.write_atomic", fails)
        with pytest.warns(UserWarning, match="val.json: Permission denied. The score is not in"):
            assert run(["evaluate", str(copy)]) == 0
        assert "accuracy" in capsys.readouterr().out

    @pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
    def test_what_the_report_cannot_show_is_told_before_scoring(
        self, copy: Path, name: str, failed: Failed
    ) -> None:
        (copy / name).write_text("[]\n")
        assert name in failed("evaluate", copy)
        assert not (copy / "evaluation").exists()

    def test_new_images_among_them_are_scored_alone(
        self, copy: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        mixed = paint(tmp_path / "mixed", 2, seed=7)
        for file in photos.glob("red/*.png"):
            shutil.copy(file, mixed / "blue" / f"renamed-{file.name}")
        assert run(["evaluate", str(copy), "--data", str(mixed)]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert "on 6 images" in told
        assert "10 images that were used for training or validation are left out." in told
        assert self.result(copy, "mixed-all-unseen")["num_images"] == 6

    def test_training_images_alone_are_refused_or_marked_everywhere(
        self,
        copy: Path,
        photos: Path,
        tmp_path: Path,
        failed: Failed,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        used = tmp_path / "used"
        every = {file.read_bytes(): file for file in photos.rglob("*.png")}
        from vitune.data import UsedImages

        table = UsedImages.read(copy / "images.npz").tables["train"]
        for number, path in enumerate(table.paths):
            (used / Path(path).parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, used / Path(path).parent.name / f"{number}.png")
        assert len(every) == 30 and len(table) == 24
        told = failed("evaluate", copy, "--data", used)
        assert "got 24 that were all used to train this run, expected others" in told
        assert "--including-training" in told
        assert not (copy / "evaluation").exists()
        unseen = paint(tmp_path / "unseen", 2, seed=8)
        assert run(["evaluate", str(copy), "--data", str(unseen)]) == 0
        capfd.readouterr()
        assert run(["evaluate", str(copy), "--data", str(used), "--including-training"]) == 0
        mark = "These images were used for training: the score says nothing about new images."
        assert mark in " ".join(capfd.readouterr().out.split())
        result = self.result(copy, "used-all-including-training")
        assert result["including_training"] and result["seen"] == {"trained": 24, "watched": 0}
        page = (copy / "report.html").read_text()
        assert mark in page
        headline = page[page.index("Top-1 accuracy,") : page.index("Top-1 accuracy,") + 200]
        assert "unseen-all" in headline, "the headline is not the score on training images"
        assert run(["info", str(copy)]) == 0
        assert "says nothing about" in " ".join(capfd.readouterr().out.split())

    def test_alone_it_is_marked_in_the_headline(self, copy: Path) -> None:
        assert run(["evaluate", str(copy), "--including-training"]) == 0
        page = (copy / "report.html").read_text()
        headline = page[page.index("Top-1 accuracy,") :][:1500]
        assert "24 of these 30 images were used for training" in headline

    def test_what_cannot_know_says_so(
        self, copy: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["merge", str(copy), "--out", str(tmp_path / "merged")]) == 0
        assert run(["evaluate", str(tmp_path / "merged"), "--data", str(photos)]) == 0
        assert "Unknown whether the model was trained" in capsys.readouterr().out
        assert run(["evaluate", str(copy / "adapter"), "--data", str(photos)]) == 0
        assert "on 6 images" in capsys.readouterr().out, "the adapter's run is beside it"

    def test_folders_of_one_name_keep_a_result_each(self, copy: Path, tmp_path: Path) -> None:
        for place in ("a", "b"):
            data = paint(tmp_path / place / "unseen", 2, seed=9)
            for _ in range(2):
                assert run(["evaluate", str(copy), "--data", str(data)]) == 0
        names = sorted(path.stem for path in (copy / "evaluation").iterdir())
        assert names == ["unseen-all", "unseen-all-2"]
        assert self.result(copy, "unseen-all-2")["data"] == str(tmp_path / "b" / "unseen")


class TestWhatIsTheUsers:
    """Files that were there before stay as they are."""

    @pytest.mark.parametrize(
        "words",
        [
            ["predict", "RUN", "PHOTOS", "--out", "MINE/notes.txt"],
            ["analyze", "RUN", "--num-images", "0", "--out", "MINE"],
            ["merge", "RUN", "--out", "MINE"],
            ["combine", "RUN", "RUN", "--weights", "1,1", "--out", "MINE"],
            ["compare", "--data", "PHOTOS", "--out", "MINE"],
            ["bench", "run", "--suite", "demo:count", "--methods", "linear", "--out", "MINE"],
            ["bench", "study", "no-such.yaml", "--out", "MINE"],
            ["bench", "speed", "--out", "MINE/notes.txt"],
            ["demo", "--out", "MINE"],
            [*TRAIN, "--data", "PHOTOS", "--out", "MINE"],
            [*TRAIN, "--data", "PHOTOS", "--out", "MINE/notes.txt"],
        ],
        ids=lambda words: " ".join(words[:2]),
    )
    def test_every_verb_refuses_it(
        self, words: list[str], trained: Path, photos: Path, tmp_path: Path, failed: Failed
    ) -> None:
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "notes.txt").write_text("precious")
        places = {"RUN": trained, "PHOTOS": photos, "MINE": mine}
        for name, path in places.items():
            words = [word.replace(name, str(path)) for word in words]
        told = failed(*words)
        assert "expected a new f" in told or "notes.txt" in told
        assert [path.name for path in mine.iterdir()] == ["notes.txt"]
        assert (mine / "notes.txt").read_text() == "precious"

    def test_force_overwrites_one_file(self, trained: Path, photos: Path, tmp_path: Path) -> None:
        out = tmp_path / "p.csv"
        out.write_text("old")
        assert run(["predict", str(trained), str(photos), "--out", str(out), "--force"]) == 0
        assert len(out.read_text().splitlines()) == 31

    def test_force_analyses_into_a_folder_with_files(self, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("precious")
        words = ["analyze", str(trained), "--num-images", "0", "--out", str(tmp_path), "--force"]
        assert run(words) == 0
        assert (tmp_path / "spectrum.json").is_file()
        assert (tmp_path / "notes.txt").read_text() == "precious"

    def test_a_pipe_stays_a_pipe(self, trained: Path, photos: Path, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
        assert run(["predict", str(trained), str(photos), "--out", str(pipe)]) == 0
        assert reader.communicate()[0].startswith("path,class_1")
        assert stat.S_ISFIFO(pipe.stat().st_mode)


class TestNames:
    """Names of files as they come."""

    @pytest.fixture
    def odd(self, photos: Path, tmp_path: Path) -> Path:
        folder = tmp_path / "odd"
        folder.mkdir()
        first = photos / "red" / "0.png"
        shutil.copy(first, os.fsencode(folder) + b"/caf\xe9.png")
        shutil.copy(first, folder / "grün.png")
        return folder

    def test_predictions_keep_every_file(
        self, trained: Path, odd: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "p.csv"
        assert run(["predict", str(trained), str(odd), "--out", str(out)]) == 0
        lines = out.read_text(encoding="utf-8").splitlines()
        assert [Path(line.split(",")[0]).name for line in lines[1:]] == ["caf\\xe9.png", "grün.png"]
        capfd.readouterr()
        assert run(["predict", str(trained), str(odd)]) == 0
        assert "caf\\xe9.png" in capfd.readouterr().out

    def test_they_train_and_are_scored(self, photos: Path, tmp_path: Path) -> None:
        data = tmp_path / "data"
        shutil.copytree(photos, data)
        (data / "red" / "0.png").rename(os.fsdecode(os.fsencode(data / "red") + b"/caf\xe9.png"))
        words = ["--data", str(data), "--out", str(tmp_path / "run"), "--epochs", "1"]
        assert run([*TRAIN, *words]) == 0
        assert run(["evaluate", str(tmp_path / "run"), "--including-training"]) == 0
        assert run([*TRAIN[:1], "--out", str(tmp_path / "run"), "--resume", "--epochs", "2"]) == 0


def test_files_have_the_permissions_of_the_umask(photos: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        words = ["--data", str(photos), "--out", str(tmp_path / "run"), "--epochs", "1"]
        assert run([*TRAIN, *words]) == 0
        assert run(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "m")]) == 0
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


def test_a_run_is_used_from_another_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "photos")
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), "weights.safetensors")
    words = ["--backbone", "test_vit", "--checkpoint", "weights.safetensors", "--epochs", "1"]
    assert run([*TRAIN, "--data", "photos", "--out", "run", *words]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run(["evaluate", "../run"]) == 0
    assert run(["predict", "../run", "../photos", "--out", "p.csv"]) == 0
    assert run(["train", "--out", "../run", "--resume", "--epochs", "2"]) == 0


def test_an_image_made_later_is_new(copy: Path, tmp_path: Path) -> None:
    """One pixel decides: the file's name and folder do not."""
    data = tmp_path / "data" / "red"
    data.mkdir(parents=True)
    Image.new("RGB", (40, 48), "red").save(data / "0.png")
    for other in ("blue", "green"):
        (data.parent / other).mkdir()
        Image.new("RGB", (40, 48), other).save(data.parent / other / "0.png")
    assert run(["evaluate", str(copy), "--data", str(data.parent)]) == 0
    result = json.loads((copy / "evaluation" / "data-all.json").read_text())
    assert result["num_images"] == 3 and result["left_out"] == {"trained": 0, "watched": 0}
