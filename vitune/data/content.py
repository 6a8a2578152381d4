"""Content hashes of files: read once, then recognised by the file's identity on disk."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock

from vitune.errors import DataError

FILE = "content-v1.txt"
MAX_BYTES = 128 * 2**20
"""The cache starts over above this size: about a million files."""

SETTLED_SECONDS = 2.0
"""A file that changed more recently than this may change again without its times showing it."""

CHUNK = 1024
"""Files between two writes of their hashes, so that an interrupted run keeps what it has read."""

Stamp = tuple[int, int, int, int, int]

_LINE = re.compile(rb"((?:\d+:){4}\d+) ([0-9a-f]{64}) ([0-9a-f]{8})")


def content_hash(path: str | Path) -> str:
    """64 hex digits: sha256 of the file's bytes.

    The hash is kept in the user's cache folder under device, inode, size, and the times of the
    last change of content and of status. The last cannot be reset, so a file whose bytes were
    replaced at equal size and date is read again.

    Args:
        path: of a file; links are followed.

    Raises:
        DataError: no such file, or one that cannot be read.
    """
    return content_hashes([path])[0]


def content_hashes(paths: Sequence[str | Path], *, num_workers: int | None = None) -> list[str]:
    """`content_hash` of every file, in order; unknown ones are read in parallel.

    Args:
        num_workers: reading threads; None is the number of cores, at most 8.

    Raises:
        DataError: as `content_hash`, for the first file that cannot be read.
    """
    if not paths:  # as of drawn images: the cache can be large
        return []
    known = _known_hashes()
    stamps = [_stamp(path) for path in paths]
    found = ["" if stamp is None else known.hashes.get(stamp, "") for stamp in stamps]
    unknown = [place for place, digest in enumerate(found) if not digest]
    workers = num_workers or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(unknown), CHUNK):
            places = unknown[start : start + CHUNK]
            outcomes = list(pool.map(_stamped_hash, [paths[place] for place in places]))
            known.add({stamp: digest for stamp, digest in outcomes if stamp is not None})
            for place, (_, digest) in zip(places, outcomes, strict=True):
                found[place] = digest
    return found


def stamp_of(status: os.stat_result) -> Stamp:
    """What distinguishes two states of a file without reading it."""
    return (
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )  # fmt: skip


def default_cache_dir() -> Path:
    """$VITUNE_CACHE, or else ~/.cache/vitune."""
    named = os.environ.get("VITUNE_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "vitune"


class _KnownHashes:
    """The cache file in memory: a line per file, only ever appended to.

    Several processes append at once, each line in one write. A torn or damaged line fails its check
    and is skipped; so is a cache folder that cannot be read or written.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.lock = file, Lock()
        self.hashes: dict[Stamp, str] = dict(self._read())

    def add(self, new: dict[Stamp, str]) -> None:
        """Store hashes, in memory and on disk."""
        with self.lock:
            fresh = {stamp: digest for stamp, digest in new.items() if stamp not in self.hashes}
            self.hashes |= fresh
        if fresh:
            self._append(b"".join(_line(stamp, digest) for stamp, digest in fresh.items()))

    def _read(self) -> Iterator[tuple[Stamp, str]]:
        try:
            if self.file.stat().st_size > MAX_BYTES:
                self.file.unlink()
            lines = self.file.read_bytes().splitlines()
        except OSError:
            return
        for line in lines:
            match = _LINE.fullmatch(line)
            if match and _check(match[1], match[2]) == match[3]:
                device, inode, size, modified, changed = map(int, match[1].split(b":"))
                yield (device, inode, size, modified, changed), match[2].decode()

    def _append(self, lines: bytes) -> None:
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, b"\n" + lines)  # a line torn by another writer ends here
            finally:
                os.close(handle)


_KNOWN: dict[Path, _KnownHashes] = {}
_OPENING = Lock()


def _known_hashes() -> _KnownHashes:
    """The cache of this process, read on first use."""
    file = default_cache_dir() / FILE
    with _OPENING:
        if file not in _KNOWN:
            _KNOWN[file] = _KnownHashes(file)
        return _KNOWN[file]


def _stamp(path: str | Path) -> Stamp | None:
    """The file's stamp; None if there is no such file, which reading it will report."""
    try:
        return stamp_of(os.stat(path))
    except OSError:
        return None


def _stamped_hash(path: str | Path) -> tuple[Stamp | None, str]:
    """The hash, and the stamp to store it under; None if the file may still be changing."""
    try:
        with Path(path).open("rb") as file:
            before = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise DataError(
            f"file {str(path)!r}: got {error.strerror!r}, expected one that can be read."
        ) from None
    settled = time.time() - after.st_ctime > SETTLED_SECONDS
    return (stamp_of(after) if settled and stamp_of(before) == stamp_of(after) else None), digest


def _line(stamp: Stamp, digest: str) -> bytes:
    key, value = ":".join(map(str, stamp)).encode(), digest.encode()
    return b"%b %b %b\n" % (key, value, _check(key, value))


def _check(key: bytes, value: bytes) -> bytes:
    return hashlib.sha256(key + b" " + value).hexdigest()[:8].encode()
