"""Writing files: atomically, with the user's umask, and never over the user's own files."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vitune.errors import OutputError
from vitune.processes import Writer

MAX_NAME = 100
"""Characters of the target's name in the name of a part; file systems allow 255 in total."""
PART = re.compile(r"\.(?P<name>.+)\.(?P<writer>[0-9a-f]{8}-\d+)-[0-9a-f]{8}\.part", re.DOTALL)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a write to a full disk, or beyond a limit on files."""

OPEN_FILE = re.compile(r"/dev/(stdin|stdout|stderr|fd/\d+)|/proc/(self|\d+)/fd/\d+")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path next to `path` to write to; on success it replaces `path`, on failure it is
    removed.

    A symbolic link is followed: the file it points to is replaced, the link stays. A file that
    is replaced keeps its permissions; a new one has those of the umask.

    Raises:
        OSError: whatever the file system says (a full disk, for example); `path` is then unchanged.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, target.name)
    with _named_as(target, _part_name(target)) as aside:
        handle = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        os.close(handle)
        try:
            yield aside
            if target.exists():
                mode = stat.S_IMODE(target.stat().st_mode)
            aside.chmod(mode)  # the writer may have replaced it with a file of another mode
            # In this order: the content is on disk before the name points to it, else a power cut
            # could leave the name with an empty file; the new name itself is stored in the folder.
            _flush(aside)
            aside.replace(target)
            _flush(target.parent)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder next to `path`; on success it replaces `path`.

    The previous folder is moved aside before the rename and removed after it, so that one complete
    copy exists at every moment; `recover_folder` puts it back after a kill between the two steps.
    Files written into the folder get the permissions of the umask.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(target)
    sweep(target.parent, target.name)
    with _named_as(target, _part_name(target)) as aside:
        aside.mkdir()
        try:
            yield aside
            mode = stat.S_IMODE(aside.stat().st_mode) & 0o666
            for entry in aside.rglob("*"):
                if entry.is_file():
                    entry.chmod(mode)
                    _flush(entry)
            _flush(aside)
            _swap_in(aside, target)
            _flush(target.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def recover_folder(path: str | Path) -> None:
    """Restore the previous folder if a kill fell between the two renames of `atomic_folder`."""
    target = Path(os.path.realpath(path))
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


def sweep(folder: str | Path, name: str | None = None) -> None:
    """Remove half-written files in `folder` left by writers that died.

    Args:
        name: only parts of the file or folder of this name.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            found = PART.fullmatch(entry.name)
            if found is None or (name is not None and found["name"] != name[:MAX_NAME]):
                continue
            with suppress(OSError):
                if Writer.parse(found["writer"]).is_dead(since=entry.stat().st_mtime):
                    _remove(Path(entry.path))


def is_part(name: str) -> bool:
    """Whether a file name is that of a half-written file."""
    return PART.fullmatch(name) is not None


def file_sha256(path: str | Path) -> str:
    """64 hex digits of the sha256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output(path: str | Path, *, force: bool = False) -> None:
    """Refuse an output file that would destroy a file of the user's.

    Every command with --out calls this before its work and `write_output` after it.

    Raises:
        OutputError: a folder is there, or a regular file and `force` is false.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(
            f"--out: got the folder {str(path)!r}, expected a file name such as "
            f"{str(target / 'result')!r}."
        )
    if target.is_file() and not force and not _is_open_file(target):
        raise OutputError(
            f"--out: got {str(path)!r}, which exists, expected a new file. Choose another name, "
            "or overwrite it with --force."
        )


def write_output(path: str | Path, content: str | bytes, *, force: bool = False) -> None:
    """Write a result to the path the user requested.

    A new file appears atomically. Anything but a regular file (a device, a pipe, /dev/stdout) is
    written to, not replaced. A symbolic link is followed.

    Raises:
        OutputError: as `check_output`.
        OSError: whatever the file system says.
    """
    check_output(path, force=force)
    target = Path(path)
    if not is_stream(target):
        write_atomic(target, content)
        return
    data = content.encode() if isinstance(content, str) else content
    with open(os.open(target, os.O_WRONLY | os.O_APPEND), "wb") as stream:
        stream.write(data)


def check_new_folder(path: str | Path, *, hint: str = "Choose another name.") -> None:
    """Refuse a new folder at a path that already exists.

    Raises:
        OutputError: `path` is a file, a link that leads nowhere, or a folder that is not empty.
    """
    folder = Path(path)
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"--out: got {str(path)!r}, which exists, expected a new folder. {hint}")


def check_folder(path: str | Path, *, marks: Sequence[str] = (), force: bool = False) -> None:
    """Refuse to write into a folder that holds the user's files.

    Args:
        marks: names found only in a folder of this command; if one exists, it may continue.

    Raises:
        OutputError: `path` is not a folder, or it holds something else and `force` is false.
    """
    folder = Path(path)
    is_own = folder.is_dir() and (force or any((folder / mark).exists() for mark in marks))
    if not is_own:
        check_new_folder(folder, hint="Choose another name, or write into it with --force.")


def is_stream(path: str | Path) -> bool:
    """Whether `path` can be written to but is not a regular file: a device, a pipe."""
    target = Path(path)
    if not target.exists() or target.is_dir():
        return False
    return not target.is_file() or _is_open_file(target)


def _is_open_file(path: Path) -> bool:
    """Whether `path` names an open file of this process: /dev/stdout, /dev/fd/3."""
    return OPEN_FILE.fullmatch(os.path.abspath(path)) is not None


def _part_name(target: Path) -> Path:
    token = f"{Writer.here()}-{secrets.token_hex(4)}"
    return target.with_name(f".{target.name[:MAX_NAME]}.{token}.part")


@contextmanager
def _named_as(target: Path, aside: Path) -> Iterator[Path]:
    """Within the context, errors name the file that the user knows, not the one beside it."""
    try:
        yield aside
    except OSError as error:
        if error.filename is None and error.errno in NO_ROOM:  # a write does not say where
            error.filename = str(target)
        elif isinstance(error.filename, str | Path):
            inside = os.path.relpath(error.filename, aside)
            if not inside.startswith(os.pardir):
                error.filename = os.path.normpath(target / inside)
        raise


def _swap_in(aside: Path, target: Path) -> None:
    """Rename `aside` to `target`; an existing one is moved aside first and removed last."""
    previous = _previous(target)
    for _ in range(3):
        if target.exists():
            target.replace(previous)  # rename() replaces only an empty folder
        try:
            aside.replace(target)
        except OSError as error:
            # A reader between the two renames has restored the previous folder.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            break
    shutil.rmtree(previous, ignore_errors=True)


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _flush(path: Path) -> None:
    """Flush a file or a folder's list of names to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
