"""Files that are complete or absent: written aside, flushed, then renamed over the old one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it replaces `path`, on failure it goes.

    Raises:
        OSError: whatever the file system says (a full disk, say); `path` is then as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        with aside.open("rb+") as written:
            os.fsync(written.fileno())
        aside.chmod(0o644)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; on success it takes the place of `path`.

    The previous folder is moved aside before the rename and removed after it, so that one whole
    copy exists at every moment; `recover_folder` puts it back after a kill between the two steps.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(target)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
    previous = _previous(target)
    try:
        yield aside
        aside.chmod(0o755)
        if target.exists():
            target.replace(previous)
        aside.replace(target)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def recover_folder(path: str | Path) -> None:
    """Put back the previous folder where a kill fell between the two renames of `atomic_folder`."""
    target = Path(path)
    previous = _previous(target)
    if previous.exists() and not target.exists():
        previous.replace(target)
    elif previous.exists():
        shutil.rmtree(previous)


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path) as aside:
        aside.write_bytes(data)


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")
