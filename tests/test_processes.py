"""Locks die with their owner; a writer is dead only where that is certain."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitune.errors import OutputError
from vitune.processes import Writer, locked

HOLDS = """
import sys, time
from pathlib import Path
from vitune.processes import locked
with locked(Path(sys.argv[1]), "folder"):
    print("held", flush=True)
    time.sleep(60)
"""
WHAT = "run folder 'q'"


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock at `path`."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def test_a_second_process_is_refused_and_told_who_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    child = holder(path)
    try:
        told = rf"run folder 'q': got one that process {child.pid} on .* since 20.*, expected"
        with pytest.raises(OutputError, match=told), locked(path, WHAT):
            pass
        assert path.exists(), "a refusal leaves the lock to its owner"
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert path.exists()
    with locked(path, WHAT):  # the owner was killed: its file is there, its lock is not
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_two_owners_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    refused = pytest.raises(OutputError, match="no process writes to")
    with locked(path, WHAT), refused, locked(path, WHAT):
        pass
    with locked(path, WHAT):
        pass


def test_a_lock_file_that_is_replaced_meanwhile_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".lock"
    real, calls = fcntl.flock, []

    def flock(file: object, flags: int) -> None:
        calls.append(flags)
        if len(calls) == 1:
            path.unlink()  # as the owner before us does when it ends
        real(file, flags)  # type: ignore[arg-type]

    monkeypatch.setattr("vitune.processes.fcntl.flock", flock)
    with locked(path, WHAT):
        assert path.exists() and len(calls) == 2


@pytest.mark.parametrize(("alive", "text"), [(True, "refused"), (False, "taken over")])
def test_without_file_locks_the_text_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool, text: str
) -> None:
    def flock(file: object, flags: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    path = tmp_path / ".lock"
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    writer = Writer(Writer.here().host, child.pid)
    path.write_text(json.dumps({"writer": str(writer), "pid": child.pid, "host": "h"}))
    if not alive:
        child.communicate(b"\n")
    monkeypatch.setattr("vitune.processes.fcntl.flock", flock)
    try:
        if alive:
            with pytest.raises(OutputError, match=f"process {child.pid} on h"), locked(path, WHAT):
                pass
        else:
            with locked(path, WHAT):
                assert json.loads(path.read_text())["pid"] == os.getpid()
    finally:
        child.communicate(b"\n") if alive else None


def test_who_is_dead() -> None:
    now, here = time.time(), Writer.here()
    assert Writer.parse(str(here)) == here
    assert not here.is_dead(since=now)
    assert here.is_dead(since=now - 1e6), "a process that started later only has the same id"
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert Writer(here.host, child.pid).is_dead(since=now)
    assert not Writer("00000000", child.pid).is_dead(since=now), "of other machines nothing is sure"
