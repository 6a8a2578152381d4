"""What every test may use: few threads, fixed seeds, and the shared data where it is present."""

from __future__ import annotations

import atexit
import gc
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-cases", type=int, default=100, help="cases of tests/fuzz")
    parser.addoption("--fuzz-seed", type=int, default=0, help="what its cases are drawn from")


def pytest_collectstart() -> None:
    """Libraries and 10,000 tests make 1.4 million objects that live as long as the process.

    Garbage collection walks through them again and again: half of the collection's processor time.
    """
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # libraries that are not collected at exit report leaks


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch  # here: the process that deals tests out to workers runs none

    # `torch.manual_seed` writes down the stack for each kind of GPU that is not in use: 0.7 ms.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Content hashes and decoded images of tests stay out of the user's cache folder."""
    os.environ["VITUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _what_stays_the_same_is_made_once() -> Iterator[None]:
    """PEFT compiles the same model card whenever it saves; a run reads ten libraries' releases."""
    import jinja2

    from vitune import environment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", cache(jinja2.Environment.compile))
        patch.setattr(environment, "version", cache(environment.version))
        yield


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The developers' data folder beside the checkout; a user's clone has none."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs the development data in {SHARED}, which this checkout does not have")
    return SHARED


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail as a user's mistake: exit 2, one line, no traceback."""
    from vitune.cli import run

    def call(*arguments: object) -> str:
        capsys.readouterr()
        assert run([str(word) for word in arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("vitune: error: "), error
        assert "Traceback" not in error
        return error

    return call


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, of 1 MiB, that `mount -o remount` can make larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount a small disk ({done.stderr.strip()})")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
