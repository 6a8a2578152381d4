"""The files of a search: a killed one reads them and continues where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from vitune.data import UsedImages
from vitune.errors import AdapterError, explain, one_line
from vitune.files import write_atomic
from vitune.result_files import Record, as_record, read_json
from vitune.training.attempts import Attempt, outcome, report
from vitune.training.resuming import refuse_other_images

DECISION = "tune.json"
"""Beside the search's folder: what was tried and what was chosen."""

SEARCH_FILES = ("tune", DECISION, "tune.md")
"""What a search leaves in the run folder before its refit."""

REQUEST = "request.json"
"""In the search's folder: what was asked for."""

IMAGES = "images.npz"
"""In the search's folder: the images that its runs were trained and compared on."""

DAMAGE = (KeyError, TypeError, ValueError, AttributeError, EOFError, OSError)
"""What reading a run raises whose record is not as the search wrote it."""


class AttemptLog:
    """Finished rungs, in `tune/` of the run folder `out`, and the outcome beside it."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / "tune"
        self.lines = self.folder / "attempts.jsonl"

    def begin(self, settings: Mapping[str, Any], budget_s: float) -> None:
        """Record what was asked for, so that the search can go on without being told again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        request = {"budget_s": budget_s, "settings": dict(settings)}
        write_atomic(self.folder / REQUEST, json.dumps(request))

    def exists(self) -> bool:
        """Whether a search has begun here."""
        return (self.folder / REQUEST).is_file()

    def request(self) -> tuple[dict[str, Any], float]:
        """The settings and the seconds that the search was given.

        Raises:
            AdapterError: there is no search.
            VituneError: its record is damaged.
        """
        path = self.folder / REQUEST
        if not self.exists():
            raise AdapterError(
                f"--resume: got {str(self.out)!r} without {self.folder.name}/{REQUEST}, expected "
                "the folder of a search. Leave --tune out to continue a run."
            )
        record = as_record(read_json(path, str(path)), str(path))
        record.needed("budget_s")
        return record.mapping("settings"), record.number("budget_s") or 0.0

    def keep_images(self, images: UsedImages) -> None:
        """Record the images of a new search; one that goes on must have the same.

        Raises:
            AdapterError: it has others; the text names what differs.
        """
        path = self.folder / IMAGES
        if path.is_file():
            refuse_other_images(path, images)
        else:
            images.write(path)

    def num_kept(self) -> int:
        """Finished runs of the search."""
        return sum(1 for _ in self._rows())

    def outcome(self) -> str:
        """The chosen setting beside the solved probe, in one line."""
        return self._decision().text("outcome") or ""

    def add(self, attempt: Attempt, number: int, used_s: float) -> None:
        """One line and one file of losses; the line comes last, so that it means both."""
        name = f"losses-{number}.npy"
        np.save(self.folder / name, attempt.losses)
        line = {**attempt.row(), "losses": name, "used_s": used_s}
        is_torn = self.lines.is_file() and not self.lines.read_bytes().endswith(b"\n")
        with self.lines.open("a") as file:
            file.write("\n" * is_torn + json.dumps(line) + "\n")

    def read(self, num_images: int) -> tuple[list[Attempt], float]:
        """What an earlier part of the search tried, and the seconds it used up.

        Args:
            num_images: of validation; every attempt has a loss for each.

        Raises:
            AdapterError: a line, or its file of losses, is damaged.
        """
        attempts: list[Attempt] = []
        used_s = 0.0
        for number, row in self._rows():
            try:
                used_s = float(row.pop("used_s"))
                losses = np.load(self.folder / row.pop("losses"))
                if losses.shape != (num_images,):
                    raise ValueError(f"{losses.size} losses for {num_images} images")
                attempts.append(Attempt.of_row(row, losses))
            except DAMAGE as error:
                raise AdapterError(
                    f"{self.lines} line {number}: got {_reason(error)}, expected a run as the "
                    "search wrote it. Remove the line: the run is then made again."
                ) from None
        return attempts, used_s

    def _rows(self) -> Iterator[tuple[int, Any]]:
        """Every whole line with its number; one that a kill or a full disk tore is skipped."""
        lines = self.lines.read_text(errors="replace").splitlines() if self.lines.is_file() else []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            yield number, row

    def decided(self) -> Attempt | None:
        """The choice of a search that was killed during its refit; None before the choice."""
        if not (self.out / DECISION).is_file():
            return None
        chosen = self._decision().mapping("chosen")
        try:
            return Attempt.of_row(chosen, np.zeros(0))
        except DAMAGE as error:
            raise AdapterError(
                f"{self.out / DECISION}: chosen: got {_reason(error)}, expected a run as the "
                "search wrote it. Remove the file: the search then decides again."
            ) from None

    def _decision(self) -> Record:
        path = self.out / DECISION
        return as_record(read_json(path, str(path)), str(path))

    def decide(
        self,
        attempts: Sequence[Attempt],
        chosen: Attempt,
        used_s: float,
        groups: np.ndarray | None = None,
    ) -> None:
        """Write tune.md and tune.json.

        Args:
            groups: of the validation images, (n,), if they are known.
        """
        write_atomic(self.out / "tune.md", report(attempts, chosen, used_s, groups))
        rows = [one.row() for one in attempts]
        told = outcome(attempts, chosen, groups)
        found = {"outcome": told, "chosen": chosen.row(), "tried": rows}
        write_atomic(self.out / DECISION, json.dumps(found, indent=1))


def _reason(error: BaseException) -> str:
    """What is wrong with a record, in one line."""
    return explain(error) if isinstance(error, ValidationError) else one_line(error)
