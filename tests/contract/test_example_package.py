"""examples/my-method: built, installed beside vitune in a new environment, held to the contract."""

from __future__ import annotations

import json
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "my-method"
METHODS = ("magnitude", "svfit")


def output(*command: object, folder: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment's Python, with the wheels of both packages over this one's libraries."""
    folder = tmp_path_factory.mktemp("beside")
    wheels = folder / "wheels"
    for package in (ROOT, EXAMPLE):
        copy = folder / package.name
        left_out = shutil.ignore_patterns(".*", "tests", "docs", "build", "*.egg-info", "runs")
        shutil.copytree(package, copy, ignore=left_out)
        flags = ("--no-deps", "--no-build-isolation", "--no-index", "-q")
        output(sys.executable, "-m", "pip", "wheel", *flags, "-w", wheels, copy, folder=folder)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    interpreter = folder / "venv" / "bin" / "python"
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    home = Path(output(interpreter, "-c", asked, folder=folder).strip())
    for wheel in wheels.glob("*.whl"):
        shutil.unpack_archive(wheel, home, "zip")
    libraries = {*site.getsitepackages(), sysconfig.get_path("purelib")}
    libraries |= {entry for entry in sys.path if entry.endswith("site-packages")}
    (home / "libraries.pth").write_text("\n".join(sorted(libraries)) + "\n")
    return interpreter


def test_the_examples_are_short() -> None:
    for method in METHODS:
        code = (EXAMPLE / "my_method" / f"{method}.py").read_text()
        assert code.count("\n") <= 40


def test_vitune_finds_the_installed_methods(python: Path, tmp_path: Path) -> None:
    code = (
        "import json, my_method.svfit, vitune; from vitune.methods import METHODS\n"
        "config = my_method.svfit.SVFitConfig(); import peft\n"
        "print(json.dumps([vitune.__file__, {n: dict(METHODS[n].plugin) for n in "
        f"{METHODS!r}}}]))"
    )
    where, found = json.loads(output(python, "-c", code, folder=tmp_path))
    assert Path(where).is_relative_to(python.parents[1]), "the wheel's vitune, not the checkout's"
    assert found == {name: {"package": "my-method", "version": "0.1.0"} for name in METHODS}


@pytest.mark.parametrize(
    ("method", "networks", "at_least"),
    [
        ("svfit", ("-k", "swin or plain_stack"), 25),
        *(pytest.param(method, (), 100, marks=pytest.mark.slow) for method in METHODS),
    ],
)
def test_an_installed_method_holds_to_the_contract(
    python: Path, tmp_path: Path, method: str, networks: tuple[str, ...], at_least: int
) -> None:
    words = ("--pyargs", "vitune.testing", "--method", method, "-q", *networks)
    alone = ("-p", "no:cacheprovider", "-p", "no:xdist")
    told = output(python, "-m", "pytest", *words, *alone, folder=tmp_path)
    assert "failed" not in told
    assert int(told.rsplit(" passed", 1)[0].rsplit(maxsplit=1)[-1]) >= at_least, told[-300:]
