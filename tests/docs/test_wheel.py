"""The wheel, installed where the source tree is not, has all that its commands need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import vitune

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("vitune", "pyproject.toml", "README.md", "LICENSE")
"""What the build reads; it works on a copy, so that nothing is left in the checkout."""


def _done(command: list[str], cwd: Path) -> str:
    """Standard output of a command that must succeed, run without the checkout on its path."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=left_out)
        else:
            shutil.copy(ROOT / name, source / name)
    build = "from setuptools.build_meta import build_wheel as b; import sys; print(b(sys.argv[1]))"
    _done([sys.executable, "-c", build, str(out)], source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, and this one's libraries except vitune itself."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    scheme = {"base": str(home), "platbase": str(home)}
    purelib = Path(sysconfig.get_path("purelib", "venv", scheme))
    libraries = [place for place in sys.path if place.endswith("site-packages")]
    (purelib / "libraries.pth").write_text("\n".join(libraries))
    python = str(home / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    flags = ["--no-deps", "--no-index", "--ignore-installed", "--disable-pip-version-check"]
    _done([*install, *flags, str(wheel)], home)
    return home / "bin"


def test_the_wheel_holds_every_file_that_is_no_code(wheel: Path) -> None:
    package = ROOT / "vitune"
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("vitune/")}
    data = {
        f"vitune/{path.relative_to(package)}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(data) > 200
    assert data - inside == set(), "add these to package-data in pyproject.toml"


def test_it_runs_from_the_wheel_alone(binaries: Path, tmp_path: Path) -> None:
    where = "import vitune; print(vitune.__file__)"
    home = _done([str(binaries / "python"), "-c", where], tmp_path).strip()
    assert Path(home).is_relative_to(binaries.parent), home
    command = str(binaries / "vitune")
    assert f"vitune {vitune.__version__} " in _done([command, "--version"], tmp_path)
    assert "rlrr" in _done([command, "methods"], tmp_path)
    train = "train --data demo:digits?train=40 --method bitfit --epochs 1 --image-size 16 --out run"
    _done([command, *train.split()], tmp_path)
    assert (tmp_path / "run" / "report.html").is_file()
