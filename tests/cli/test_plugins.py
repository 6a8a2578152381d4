"""A method in a file of the user's, from training to a merged model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
from cli_images import paint

OUTSIDE = Path(__file__).parents[1] / "methods"


PROGRAM = """
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
import vitune.inference, vitune.training.fitting
from vitune.cli import main

def outcome(words):
    code = 0
    with redirect_stdout(io.StringIO()) as text, redirect_stderr(text):
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code or 0
    return code, text.getvalue()

for line in iter(sys.stdin.readline, ""):
    if os.fork() == 0:
        print(json.dumps([outcome(words) for words in json.loads(line)]), flush=True)
        os._exit(0)
    os.wait()
"""
Outcomes = list[tuple[int, str]]


@pytest.fixture
def vitune() -> Iterator[Callable[..., Outcomes]]:
    """Exit code and text of commands in one process of their own, which knows no earlier plugin.

    All are forks of one that loads the libraries.
    """
    start = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(start, stdin=PIPE, stdout=PIPE, text=True) as program:
        assert program.stdin is not None and program.stdout is not None

        def call(*commands: tuple[object, ...]) -> Outcomes:
            print(json.dumps([list(map(str, one)) for one in commands]), file=program.stdin)
            program.stdin.flush()
            return [(code, text) for code, text in json.loads(program.stdout.readline())]

        yield call
        program.stdin.close()


def test_train_evaluate_merge_and_info(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vitune: Callable[..., Outcomes]
) -> None:
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
