"""Results on disk by content address: files are atomic, and no cell runs twice at once."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitune.bench.study.cells import CellResult
from vitune.errors import VituneError
from vitune.files import write_atomic

LOG = logging.getLogger(__name__)

NOT_USED = "It counts as missing: starting the study again runs the cell again."
"""True of a study, which does so at once, and of a table, which runs nothing."""


class Store:
    """The folder of a study: `cells/ADDRESS.json`, one per cell, next to the study's own files.

    Args:
        path: the folder; it is created when the first result is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def cells(self) -> Path:
        """The folder of the results."""
        return self.path / "cells"

    def file(self, address: str) -> Path:
        """The path of a cell's result."""
        return self.cells / f"{address}.json"

    def read(self, address: str) -> CellResult | None:
        """The result at an address; None if there is none, or only a damaged one (logged)."""
        path = self.file(address)
        try:
            result = CellResult.from_json(path.read_text())
        except FileNotFoundError:
            return None
        except (VituneError, UnicodeDecodeError) as error:
            LOG.warning("%s: %s %s", path, error, NOT_USED)
            return None
        if result.address != address:
            LOG.warning("%s: got the result of %s. %s", path, result.address, NOT_USED)
            return None
        return result

    def write(self, result: CellResult) -> None:
        """Write a result atomically.

        Raises:
            OSError: whatever the file system says; an earlier file is then unchanged.
        """
        write_atomic(self.file(result.address), result.to_json())

    def results(self) -> Iterator[CellResult]:
        """Every intact result, by address."""
        for path in sorted(self.cells.glob("*.json")):
            found = self.read(path.stem)
            if found is not None:
                yield found

    @contextmanager
    def claimed(self, address: str) -> Iterator[None]:
        """Inside, no other process on this file system runs the cell; it waits for this one.

        The operating system drops the claim of a process that dies.
        """
        folder = self.path / "claims"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / address
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
            if self.file(address).exists():  # a waiting process reads the result first
                path.unlink(missing_ok=True)
