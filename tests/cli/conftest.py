"""A run of the command line that tests may use, and one that they may spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_images import TRAIN, Failed, paint

from vitune.cli import run


@pytest.fixture
def failed(capfd: pytest.CaptureFixture[str]) -> Failed:
    """Run a command that must end with a code and one line on stderr, and return that line."""

    def call(*arguments: object, code: int = 2) -> str:
        capfd.readouterr()
        assert run([str(word) for word in arguments]) == code
        error = capfd.readouterr().err
        assert error.count("\n") == 1 and error.startswith("vitune: "), error
        return error

    return call


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("photos"), 10, seed=0)


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "photos"
    assert run([*TRAIN, "--data", str(photos), "--out", str(out)]) == 0
    return out


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"
