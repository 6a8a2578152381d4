"""A (b, height, width, 3) uint8 array on disk: written front to back, then mapped read-only."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from vitune.data.records import Pixels
from vitune.errors import DataError
from vitune.files import atomic_path, write_atomic


class ArrayWriter:
    """Appends images to an open file; `num_images` says how many there are."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.num_images = 0

    def append(self, image: Pixels) -> None:
        """Write the next image."""
        self._file.write(np.ascontiguousarray(image).data)
        self.num_images += 1


@contextmanager
def new_array(folder: Path, key: str, shape: tuple[int, ...]) -> Iterator[ArrayWriter]:
    """Yield a writer of `<folder>/images/<key>.npy`, which appears once every image is written.

    It uses plain writes, not a writable map: on a full disk a write fails with an error, while
    storing into a map would kill the process.

    Args:
        folder: created if missing.
        key: file name without suffix.
        shape: of the array if every image is good; fewer images may be written.

    Raises:
        DataError: the folder cannot be written or the disk is full.
    """
    needed_mib = np.prod(shape, dtype=np.float64) / 2**20
    with (
        _named_failure(folder, needed_mib),
        atomic_path(_array_path(folder, key)) as aside,
        aside.open("r+b") as file,
    ):
        file.write(_header(shape))
        writer = ArrayWriter(file)
        yield writer
        file.seek(0)
        file.write(_header((writer.num_images, *shape[1:])))


def store_index(folder: Path, key: str, values: dict[str, Any]) -> None:
    """Write an array's values; written last, the file marks the array as complete.

    Raises:
        DataError: the folder cannot be written or the disk is full.
    """
    text = json.dumps(values)
    with _named_failure(folder, len(text) / 2**20):
        write_atomic(_index_path(folder, key), text)


def lookup(folder: Path, key: str) -> tuple[Pixels, dict[str, Any]] | None:
    """The mapped array and its values, or None if either is missing or broken."""
    try:
        values = json.loads(_index_path(folder, key).read_text(encoding="utf-8"))
        images = np.lib.format.open_memmap(_array_path(folder, key), mode="r")
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or images.dtype != np.uint8 or images.ndim != 4:
        return None
    return images, values


def _array_path(folder: Path, key: str) -> Path:
    return folder / "images" / f"{key}.npy"


def _index_path(folder: Path, key: str) -> Path:
    return folder / "images" / f"{key}.json"


def _header(shape: tuple[int, ...]) -> bytes:
    """A .npy header; numpy pads it so that the first axis can change without moving the data."""
    buffer = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


@contextmanager
def _named_failure(folder: Path, needed_mib: float) -> Iterator[None]:
    """Turn errors of the file system into a user error that suggests another folder."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"image cache: got {error.strerror!r} in {str(folder)!r}, expected a folder with "
            f"{needed_mib:.0f} MiB to write. Free space, name another folder ($VITUNE_CACHE), or "
            "let vitune train keep the images in memory (--memory-budget-mib)."
        ) from None
