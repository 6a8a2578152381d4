"""Which process writes where: names for writers, and a lock that ends with its owner."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import psutil

from vitune.errors import OutputError

CLOCK_SLACK_S = 2.0
"""Seconds by which the clocks of a file system and of the process table may differ."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of a file system without locks."""


@dataclass(frozen=True)
class Writer:
    """A process that writes files.

    Args:
        host: 8 hex digits that stand for the machine's name.
        pid: its process id there.
    """

    host: str
    pid: int

    @classmethod
    def here(cls) -> Writer:
        """This process."""
        return cls(hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8], os.getpid())

    @classmethod
    def parse(cls, text: str) -> Writer:
        """The writer that `str` gave."""
        host, _, pid = text.partition("-")
        return cls(host, int(pid))

    def __str__(self) -> str:
        return f"{self.host}-{self.pid}"

    def is_dead(self, *, since: float) -> bool:
        """Whether it has certainly ended; for processes of other machines nothing is certain.

        Args:
            since: seconds since 1970 when it was seen running; a process that started later is
                another one with the same id.
        """
        if self.host != Writer.here().host:
            return False
        try:
            return psutil.Process(self.pid).create_time() > since + CLOCK_SLACK_S
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Within the context, no other process holds the lock at `path`, in an existing folder.

    The operating system drops the lock of a process that dies, however it dies; the text in the
    file (process, machine, start) is for people, and for file systems that have no locks.

    Args:
        what: the name in the error message, e.g. "run folder 'runs/a'".

    Raises:
        OutputError: another process holds it; the text says which, where and since when.
    """
    file = _locked_file(path, what)
    try:
        file.truncate(0)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        owner = {"writer": str(Writer.here()), "pid": os.getpid()}
        file.write(json.dumps({**owner, "host": socket.gethostname(), "started": started}))
        file.flush()
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        file.close()


def _locked_file(path: Path, what: str) -> IO[str]:
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            is_free = error.errno in NO_LOCKS and _is_stale(_owner(file), path)
            if not is_free:
                refusal = _refusal(_owner(file), what)
                file.close()
                raise refusal from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # the owner before us removed the file between our two steps


def _owner(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        values = json.loads(file.read())
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _is_stale(owner: dict[str, Any], path: Path) -> bool:
    """Whether the process that wrote the text is gone; only used without file locks."""
    try:
        writer = Writer.parse(owner["writer"])
    except (KeyError, ValueError, AttributeError):
        return not owner
    return writer == Writer.here() or writer.is_dead(since=path.stat().st_mtime)


def _refusal(owner: dict[str, Any], what: str) -> OutputError:
    who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
    return OutputError(
        f"{what}: got one that {who} has been writing to since {owner.get('started', '?')}, "
        "expected one that no process writes to. Wait for that process, or stop it."
    )
