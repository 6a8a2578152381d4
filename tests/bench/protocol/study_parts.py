"""Pictures on disk, an executor that trains nothing, and a kill, for tests of studies."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vitune.bench.study.cells import Cell, CellResult, Scores, blank_result
from vitune.bench.study.execution import Finished, InProcess
from vitune.bench.study.protocol import Watcher
from vitune.bench.study.scores import packed
from vitune.bench.study.store import Store
from vitune.bench.study.workbench import Workbench


def paint(path: Path, seed: int) -> Path:
    """A picture of 16 x 16 pixels that only `seed` decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def replace_unseen(path: Path, content: bytes) -> None:
    """Other bytes in a file whose name, size, date and inode stay as they were."""
    before = path.stat()
    assert len(content) == before.st_size and content != path.read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_ino == before.st_ino


class Invented(InProcess):
    """No training: each cell gets an accuracy that is a function of its configuration.

    Args:
        accuracy: of a cell; None makes the cell diverge.
    """

    def __init__(
        self, bench: Workbench | None = None, accuracy: Callable[[Cell], float | None] | None = None
    ) -> None:
        super().__init__(bench)
        self.accuracy = accuracy or peak
        self.num_run = 0

    def run(self, cells: Sequence[Cell], store: Store) -> Iterator[Finished]:
        for cell in cells:
            found = store.read(cell.address)
            if found is not None:
                yield found.for_cell(cell), True
                continue
            made = self.made(cell)
            store.write(made)
            self.num_run += 1
            yield made, False

    def made(self, cell: Cell) -> CellResult:
        """The result of a cell."""
        accuracy = self.accuracy(cell)
        if accuracy is None:
            return blank_result(cell, "diverged", error="TrainingError: loss: got nan")
        if cell.stage == "select":
            return blank_result(cell, "done", val=accuracy)
        bits = np.random.default_rng(cell.config.seed).random(50) < accuracy
        scores = Scores(cell.scored_on, 50, float(bits.mean()), 1.0, 0.1, packed(bits))
        return blank_result(cell, "done", scores=scores, seconds=1.0, peak_mib=1.0)


def peak(cell: Cell) -> float:
    """Best at a rate of 0.01; more epochs help a little."""
    rate = math.log10(cell.config.lr or 1.0)
    return max(0.0, 0.9 - 0.1 * (rate + 2) ** 2 - 0.05 / cell.config.epochs)


class KilledError(Exception):
    """Stands in for a driver's end."""


class Bomb(Watcher):
    """Ends the driver after so many cells, as a kill would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def finished(self, result: CellResult, reused: bool) -> None:
        self.left -= 1
        if self.left < 0:
            raise KilledError
