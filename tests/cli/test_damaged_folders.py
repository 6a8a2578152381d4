"""A full disk and damaged files: one line, nothing half-written, a way on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cli_images import TRAIN, Failed
from safetensors.torch import load_file, save_file

from vitune.cli import run


class TestFullDisk:
    """A disk that fills up: one line, code 2, nothing lost, and it goes on when there is space."""

    def fill(self, disk: Path, leave: int) -> None:
        """Leave so many bytes free."""
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
        (disk / "filler").write_bytes(b"x" * max(0, free - leave))

    @pytest.mark.parametrize(
        "kib", [0, *(pytest.param(kib, marks=pytest.mark.slow) for kib in (8, 200)), 64, 480]
    )
    def test_a_run(self, small_disk: Path, photos: Path, failed: Failed, kib: int) -> None:
        self.fill(small_disk, kib * 1024)
        words = [*TRAIN, "--method", "rlrr", "--image-size", "16", "--data", str(photos)]
        told = failed(*words, "--out", small_disk / "run")
        assert "No space left on device" in told
        (small_disk / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
        if "--resume" in told:
            words = ["train", "--resume"]
        assert run([*words, "--out", str(small_disk / "run")]) == 0
        assert not [path for path in small_disk.rglob(".*")]

    def test_merging(self, small_disk: Path, copy: Path, failed: Failed) -> None:
        told = failed("merge", copy, "--out", small_disk / "merged")
        assert "No space left on device" in told
        assert list(small_disk.iterdir()) == []

    def test_predictions(
        self, small_disk: Path, trained: Path, photos: Path, failed: Failed
    ) -> None:
        self.fill(small_disk, 0)
        told = failed("predict", trained, photos, "--out", small_disk / "p.csv")
        assert "No space left on device" in told
        assert [path.name for path in small_disk.iterdir()] == ["filler"]


class TestDamage:
    """Edited, broken and missing files are named on one line."""

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ("{", "got a damaged card (Expecting property name"),
            ("[]", "got a damaged card (got list, expected a mapping)"),
            ('{"format": 1}', "method: got nothing, expected a value"),
            (b"\xff\xfe", "got a damaged card ("),
            ("[" * 100_000, "got a damaged card ("),
            ({"classes": 3}, "classes: got 3, input should be a valid tuple"),
            ({"method_args": []}, "method_args: got [], input should be a valid dict"),
            ({"preprocessing": None}, "preprocessing: got None"),
            ({"stray": 1}, "unknown entry 'stray'"),
            ({"format": 2}, "got format 2, expected 1. Update vitune"),
        ],
    )
    def test_the_card(self, copy: Path, failed: Failed, content: object, told: str) -> None:
        file = copy / "adapter" / "vitune.json"
        if isinstance(content, dict):
            content = json.dumps({**json.loads(file.read_text()), **content})
        assert isinstance(content, str | bytes)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        for verb in ("info", "evaluate"):
            message = failed(verb, copy)
            assert told in message and "vitune.json" in message

    def test_a_card_whose_classes_were_reordered(
        self, copy: Path, photos: Path, failed: Failed, tmp_path: Path
    ) -> None:
        """Every prediction would have another class's name."""
        file = copy / "adapter" / "vitune.json"
        card = json.loads(file.read_text())
        file.write_text(json.dumps({**card, "classes": card["classes"][::-1]}))
        for words in (["predict", copy, photos], ["info", copy]):
            told = failed(*words)
            assert "vitune.json: got values that were edited" in told
            assert "'Renaming a class' in docs/runs.md" in told
        words = ["predict", str(copy), str(photos), "--out", str(tmp_path / "p.csv"), "--force"]
        with pytest.warns(UserWarning, match=r"the original ones\. Loading it anyway"):
            assert run(words) == 0
        file.write_text(json.dumps(card))  # another layout says the same
        assert run(["info", str(copy)]) == 0

    def test_a_class_is_renamed_as_the_docs_say(
        self, copy: Path, photos: Path, failed: Failed, tmp_path: Path
    ) -> None:
        page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()
        code = page.split("## Renaming a class")[1].split("```python\n")[1].split("```")[0]
        code = code.replace("runs/photos", str(copy)).replace('"cat"', '"green"')
        exec(code, {})
        assert run(["predict", str(copy), str(photos), "--out", str(tmp_path / "p.csv")]) == 0
        assert "tabby" in (text := (tmp_path / "p.csv").read_text()) and ",green," not in text
        assert "got 'green'" in failed("evaluate", copy, "--data", photos)
        shutil.copytree(photos, tmp_path / "renamed")
        (tmp_path / "renamed" / "green").rename(tmp_path / "renamed" / "tabby")
        words = ["evaluate", str(copy), "--data", str(tmp_path / "renamed")]
        with pytest.warns(UserWarning, match="was in 'green'"):
            assert run([*words, "--including-training"]) == 0

    @pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
    def test_a_flipped_bit(self, copy: Path, name: str, failed: Failed) -> None:
        file = copy / "adapter" / name
        data = bytearray(file.read_bytes())
        place = data.rindex(b"2.2") if name.endswith("json") and b"2.2" in data else len(data) - 9
        data[place] ^= 1
        file.write_bytes(data)
        told = failed("evaluate", copy)
        assert f"{name}: got sha256" in told and "damaged, or was edited" in told

    def test_force_loads_what_was_edited(self, copy: Path, tmp_path: Path) -> None:
        file = copy / "adapter" / "adapter_model.safetensors"
        tensors = {name: value + 1 for name, value in load_file(file).items()}
        save_file(tensors, file)
        with pytest.warns(UserWarning, match=r"got sha256 .*Loading it anyway"):
            assert run(["merge", str(copy), "--out", str(tmp_path / "m"), "--force"]) == 0

    def test_a_flipped_bit_in_a_merged_model(
        self, copy: Path, tmp_path: Path, photos: Path, failed: Failed
    ) -> None:
        assert run(["merge", str(copy), "--out", str(tmp_path / "m")]) == 0
        file = tmp_path / "m" / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-9] ^= 1
        file.write_bytes(data)
        assert "model.safetensors: got sha256" in failed("predict", tmp_path / "m", photos)

    def test_peft_is_not_sent_to_the_hub(self, copy: Path, failed: Failed, tmp_path: Path) -> None:
        (copy / "adapter" / "adapter_config.json").unlink()
        for words in (["evaluate", copy], ["merge", copy, "--out", tmp_path / "m"]):
            assert "without adapter_config.json, expected PEFT's file there" in failed(*words)
        weights = ["--weights", "1,1", "--out", tmp_path / "c"]
        assert "without adapter_config.json" in failed("combine", copy, copy, *weights)

    @pytest.mark.parametrize(
        ("name", "content", "told"),
        [
            ("summary.json", "{", "summary.json line 1"),
            ("summary.json", '{"method": 3}', "method: got 3, expected a string"),
            ("metrics.jsonl", "{", "metrics.jsonl line 1"),
            ("evaluation/test.json", '{"top1": 2, "num_images": 3}', "top1: got 2.0, expected"),
        ],
    )
    def test_results(self, copy: Path, name: str, content: str, told: str, failed: Failed) -> None:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(content)
        assert told in failed("info", copy)

    @pytest.mark.parametrize("content", ["data: 3\n", "a: [\n", "- 1\n", ""])
    def test_a_config_without_data(self, copy: Path, content: str, failed: Failed) -> None:
        (copy / "config.yaml").write_text(content)
        assert "config.yaml" in failed("evaluate", copy)
        assert "config.yaml" in failed("train", "--out", copy, "--resume")
