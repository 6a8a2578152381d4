"""What computed a result is told by release, commit and machine."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from vitune import environment
from vitune.environment import Environment, installed_versions, vitune_commit


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a package `vitune` of one file."""
    (tmp_path / "vitune").mkdir()
    (tmp_path / "vitune" / "a.py").write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "one")
    monkeypatch.setattr(environment, "SOURCE", tmp_path / "vitune")
    vitune_commit.cache_clear()
    yield tmp_path
    vitune_commit.cache_clear()


def test_a_checkout_names_its_commit_and_says_when_files_differ(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert vitune_commit() == head
    (checkout / "notes.txt").write_text("not the package's")
    vitune_commit.cache_clear()
    assert vitune_commit() == head
    (checkout / "vitune" / "a.py").write_text("2\n")
    vitune_commit.cache_clear()
    assert vitune_commit() == head + "+"


def test_a_wheel_names_the_commit_that_pip_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            return '{"url": "u", "vcs_info": {"vcs": "git", "commit_id": "abc"}}'

    class Released:
        def read_text(self, name: str) -> str | None:
            return None

    monkeypatch.setattr(environment, "SOURCE", tmp_path / "site-packages" / "vitune")
    for distribution, expected in ((Installed(), "abc"), (Released(), None)):
        monkeypatch.setattr(environment, "distribution", lambda name, it=distribution: it)
        vitune_commit.cache_clear()
        assert vitune_commit() == expected
    vitune_commit.cache_clear()


def test_versions_and_differences() -> None:
    assert installed_versions()["torch"] == version("torch")
    here = Environment.here()
    assert here.python == platform.python_version()
    assert here.differences(here) == []
    packages = {**here.packages, "torch": "1.0"}
    other = here.model_copy(update={"packages": packages, "python": "2.7"})
    assert here.differences(other) == [
        f"python {here.python} instead of 2.7",
        f"torch {version('torch')} instead of 1.0",
    ]
