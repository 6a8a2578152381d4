"""Tensors in safetensors files, with errors that users and callers can act on."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitune.errors import AdapterError

SYSTEM_ERROR = re.compile(r"os error (\d+)")
"""safetensors' text for a failure of the file system, such as 28 for a full disk."""


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in the format that PEFT, timm and transformers read.

    Raises:
        OSError: the disk is full, or another error of the file system.
    """
    with disk_errors(file):
        save_file(dict(tensors), file, metadata={"format": "pt"})


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        AdapterError: no such file, or a damaged one.
    """
    if not file.is_file():
        raise AdapterError(f"adapter: got no file {str(file)!r}, expected safetensors there.")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file}: got a damaged file ({error}).") from error


@contextmanager
def disk_errors(file: Path) -> Iterator[None]:
    """Within the context, write failures of safetensors become OSErrors."""
    try:
        yield
    except SafetensorError as error:
        found = SYSTEM_ERROR.search(str(error))
        number = int(found[1]) if found else errno.EIO
        reason = os.strerror(number) if found else str(error)
        raise OSError(number, reason, str(file)) from None
