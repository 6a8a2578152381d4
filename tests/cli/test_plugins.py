"""A method in a file of the user's, from training to a merged model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_images import paint

OUTSIDE = Path(__file__).parents[1] / "methods"


PROGRAM = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from vitune.cli import main

told = []
for words in json.loads(sys.argv[1]):
    code = 0
    with redirect_stdout(io.StringIO()) as text, redirect_stderr(text):
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code or 0
    told.append((code, text.getvalue()))
print(json.dumps(told))
"""


def vitune(*commands: tuple[object, ...]) -> list[tuple[int, str]]:
    """Exit code and text of commands in one fresh process, which knows no earlier plugin."""
    words = json.dumps([list(map(str, command)) for command in commands])
    command = [sys.executable, "-c", PROGRAM, words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(code, text) for code, text in json.loads(done.stdout)]


def test_train_evaluate_merge_and_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(OUTSIDE)
    from outside_methods import write_method

    photos, out = paint(tmp_path / "photos", 6, seed=0), tmp_path / "run"
    file, merged = write_method(tmp_path), tmp_path / "merged"
    plugin = ("--plugin", file)
    given = ("--data", photos, "--method", "mine", "--epochs", 1, "--start", "plain", "--out", out)
    ((code, told),) = vitune(("train", *given, *plugin))
    assert code == 0, told
    card = json.loads((out / "adapter" / "vitune.json").read_text())
    assert card["plugin"]["file"] == str(file) and len(card["plugin"]["sha256"]) == 64

    info, without, with_it, merge = vitune(
        ("info", out),
        ("predict", out, photos),
        ("predict", out, photos, *plugin),
        ("merge", out, "--out", merged, *plugin),
    )
    assert info[0] == 0 and "plugin" in info[1]
    assert without[0] == 2 and without[1].count("\n") == 1
    assert f"Pass --plugin {file}" in without[1]
    assert with_it[0] == 0 and "path,class_1" in with_it[1]
    assert merge[0] == 0, merge[1]

    file.write_text(file.read_text() + "\n# edited\n")
    plain, edited = vitune(("predict", merged, photos), ("predict", out, photos, *plugin))
    assert plain[0] == 0 and "path,class_1" in plain[1]
    assert edited[0] == 0 and "was edited after training" in edited[1]


def test_plugins_are_listed_by_commas_and_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitune.cli._plugins import with_plugins

    loaded: list[str] = []
    monkeypatch.setattr("vitune.methods.load_plugin", loaded.append)
    with_plugins(lambda: None)(plugin=["a.py,b.py", "c.py"])
    assert loaded == ["a.py", "b.py", "c.py"]
