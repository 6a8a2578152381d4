"""Files are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vitune.files import atomic_folder, atomic_path, recover_folder, write_atomic


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_atomic(target, "old")
    with pytest.raises(OSError, match="full"), atomic_path(target) as aside:
        aside.write_text("half of the n")
        raise OSError("disk full")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with atomic_folder(target) as aside:
        (aside / "x").write_text("old")
    with pytest.raises(OSError, match="full"), atomic_folder(target) as aside:
        (aside / "x").write_text("new")
        raise OSError("disk full")
    assert (target / "x").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_between_the_renames_is_mended(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "x").write_text("old")
    target.replace(tmp_path / ".adapter.previous")
    recover_folder(target)
    assert (target / "x").read_text() == "old"


KILLED = """
import os, signal, sys
from pathlib import Path
from vitune.files import atomic_folder
target = Path(sys.argv[1])
with atomic_folder(target) as aside:
    (aside / "x").write_text("new, half wr")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_while_saving_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with atomic_folder(target) as aside:
        (aside / "x").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert done.returncode == -9
    assert (target / "x").read_text() == "old"
    with atomic_folder(target) as aside:
        (aside / "x").write_text("newer")
    assert (target / "x").read_text() == "newer"
