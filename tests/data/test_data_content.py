"""Content hashes: true whatever the dates say, kept for other processes, written together."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitune.data import content, content_hash, content_hashes, default_cache_dir
from vitune.errors import DataError


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_KNOWN", {})


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files are taken for settled as soon as they are written."""
    monkeypatch.setattr(content, "SETTLED_SECONDS", -1.0)
    yield


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the file was read")

    monkeypatch.setattr(content.hashlib, "file_digest", refuse)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.usefixtures("at_once")
def test_a_known_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write(tmp_path / f"{n}", bytes([n]) * 100) for n in range(5)]
    first = content_hashes(files)
    assert first == [sha256(bytes([n]) * 100) for n in range(5)]
    monkeypatch.setattr(content, "_KNOWN", {})  # as a new process
    unread(monkeypatch)
    assert content_hashes(files[::-1]) == first[::-1]


@pytest.mark.usefixtures("at_once")
def test_new_bytes_at_equal_size_and_date_are_seen(tmp_path: Path) -> None:
    file = write(tmp_path / "a", b"one")
    before = file.stat()
    assert content_hash(file) == sha256(b"one")
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    same = ("st_ino", "st_size", "st_mtime_ns")
    assert all(getattr(before, name) == getattr(after, name) for name in same)
    assert content_hash(file) == sha256(b"two")


def test_a_file_just_written_is_not_remembered(tmp_path: Path) -> None:
    file = write(tmp_path / "a", b"one")
    assert content_hash(file) == sha256(b"one")
    assert not (default_cache_dir() / content.FILE).exists()


@pytest.mark.usefixtures("at_once")
def test_damaged_lines_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = write(tmp_path / "1", b"one"), write(tmp_path / "2", b"two")
    content_hashes([one, two])
    cache = default_cache_dir() / content.FILE
    lines = cache.read_bytes().splitlines(keepends=True)
    wrong = lines[1].replace(sha256(b"one").encode(), sha256(b"two").encode())
    assert wrong != lines[1]
    cache.write_bytes(wrong + b"\xff\x00\n" + lines[2] + lines[1][:40])
    monkeypatch.setattr(content, "_KNOWN", {})
    assert content_hash(one) == sha256(b"one")  # the forged line fails its check
    unread(monkeypatch)
    assert content_hash(two) == sha256(b"two")
    monkeypatch.setattr(content, "_KNOWN", {})
    assert content_hash(one) == sha256(b"one")  # what was appended after a torn line is whole


def _append(folder: str, cache: str, number: int) -> None:
    os.environ["VITUNE_CACHE"] = cache
    content.SETTLED_SECONDS = -1.0
    for index in range(50):
        content_hash(Path(folder) / f"{number}-{index}")


@pytest.mark.usefixtures("at_once")
def test_several_processes_write_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write(tmp_path / f"{n}-{i}", b"%d %d" % (n, i)) for n in range(4) for i in range(50)]
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_append, args=(str(tmp_path), str(default_cache_dir()), n))
        for n in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    unread(monkeypatch)
    assert content_hashes(files) == [sha256(b"%d %d" % (n, i)) for n in range(4) for i in range(50)]


@pytest.mark.usefixtures("at_once")
def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = write(tmp_path / "file", b"")
    monkeypatch.setenv("VITUNE_CACHE", str(blocked / "below"))
    assert content_hash(blocked) == sha256(b"")


@pytest.mark.usefixtures("at_once")
def test_a_cache_that_grew_too_large_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content_hash(write(tmp_path / "a", b"a"))
    monkeypatch.setattr(content, "_KNOWN", {})
    monkeypatch.setattr(content, "MAX_BYTES", 10)
    content_hash(write(tmp_path / "b", b"b"))
    text = (default_cache_dir() / content.FILE).read_text()
    assert sha256(b"b") in text and sha256(b"a") not in text


def test_no_files_need_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn images have none, and a cache of many files takes a while to read."""
    monkeypatch.setattr(content, "_known_hashes", lambda: pytest.fail("the cache was read"))
    assert content_hashes([]) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"file '.*absent': got 'No such file or directory'"):
        content_hash(tmp_path / "absent")
    with pytest.raises(DataError, match=r"Is a directory"):
        content_hash(tmp_path)
