"""A method in a file of the user's, from training to a merged model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_images import paint

OUTSIDE = Path(__file__).parents[1] / "methods"


def vitune(*words: object, code: int = 0) -> str:
    """What a fresh process prints; a plugin of an earlier command is not there any more."""
    command = [sys.executable, "-m", "vitune", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_train_evaluate_merge_and_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(OUTSIDE)
    from outside_methods import write_method

    photos, out = paint(tmp_path / "photos", 6, seed=0), tmp_path / "run"
    file = write_method(tmp_path)
    given = ("--data", photos, "--method", "mine", "--epochs", 1, "--out", out)
    vitune("train", *given, "--plugin", file)
    card = json.loads((out / "adapter" / "vitune.json").read_text())
    assert card["plugin"]["file"] == str(file) and len(card["plugin"]["sha256"]) == 64
    assert "plugin" in vitune("info", out)
    told = vitune("predict", out, photos, code=2)
    assert told.count("\n") == 1 and f"Pass --plugin {file}" in told
    assert "path,class_1" in vitune("predict", out, photos, "--plugin", file)
    vitune("merge", out, "--out", tmp_path / "merged", "--plugin", file)
    assert "path,class_1" in vitune("predict", tmp_path / "merged", photos)
    file.write_text(file.read_text() + "\n# edited\n")
    assert "was edited after training" in vitune("predict", out, photos, "--plugin", file)


def test_plugins_are_listed_by_commas_and_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitune.cli._plugins import with_plugins

    loaded: list[str] = []
    monkeypatch.setattr("vitune.methods.load_plugin", loaded.append)
    with_plugins(lambda: None)(plugin=["a.py,b.py", "c.py"])
    assert loaded == ["a.py", "b.py", "c.py"]
