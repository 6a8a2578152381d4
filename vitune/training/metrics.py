"""metrics.jsonl: one line per epoch, appended before the epoch's checkpoint is written."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

from vitune.errors import AdapterError
from vitune.files import write_atomic


def append_row(file: Path, row: dict[str, Any]) -> None:
    """Append an epoch's line."""
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def keep_epochs(file: Path, last: int) -> None:
    """Drop the lines after epoch `last` and an incomplete last line: those epochs are run again.

    Raises:
        AdapterError: another line is damaged; the text says which.
    """
    if file.is_file():
        kept = [line for line, epoch in read_epochs(file) if epoch <= last]
        write_atomic(file, "".join(f"{line}\n" for line in kept))


def read_epochs(file: Path) -> list[tuple[str, int]]:
    """Every complete line with its epoch; none if there is no file.

    Raises:
        AdapterError: a line is damaged; the text says which.
    """
    if not file.is_file():
        return []
    whole = file.read_bytes().rpartition(b"\n")[0].decode(errors="replace")
    lines = whole.split("\n") if whole else []
    return [(line, _epoch(line, file, number)) for number, line in enumerate(lines, start=1)]


def _epoch(line: str, file: Path, number: int) -> int:
    try:
        epoch = json.loads(line)["epoch"]
    except (ValueError, TypeError, KeyError):
        epoch = None
    if type(epoch) is not int:
        raise AdapterError(
            f"{file} line {number}: got {reprlib.repr(line)}, expected the JSON that training "
            "wrote. Remove the line; --resume does not need it."
        )
    return epoch
