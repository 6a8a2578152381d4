"""The files of a search: a killed one reads them and continues where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitune.files import write_atomic
from vitune.training.attempts import Attempt, report

SEARCH_FILES = ("tune", "tune.json", "tune.md")
"""What a search leaves in the run folder before its refit."""


class AttemptLog:
    """Finished rungs, in `tune/` of the run folder `out`, and the outcome beside it."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / "tune"

    def add(self, attempt: Attempt, number: int, used_s: float) -> None:
        """One line and one file of losses; the line comes last, so that it means both."""
        name = f"losses-{number}.npy"
        np.save(self.folder / name, attempt.losses)
        line = {**attempt.row(), "losses": name, "used_s": used_s}
        with (self.folder / "attempts.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def read(self) -> tuple[list[Attempt], float]:
        """What an earlier part of the search tried, and the seconds it used up."""
        attempts: list[Attempt] = []
        used_s = 0.0
        path = self.folder / "attempts.jsonl"
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:  # the kill fell into this line
                continue
            used_s = row.pop("used_s")
            losses = np.load(self.folder / row.pop("losses"))
            attempts.append(Attempt(**row, losses=losses))
        return attempts, used_s

    def decided(self) -> Attempt | None:
        """The choice of a search that was killed during its refit; None before the choice."""
        path = self.out / "tune.json"
        if not path.is_file():
            return None
        return Attempt(**json.loads(path.read_text())["chosen"], losses=np.zeros(0))

    def decide(self, attempts: Sequence[Attempt], chosen: Attempt, used_s: float) -> None:
        """Write tune.md and tune.json."""
        write_atomic(self.out / "tune.md", report(attempts, chosen, used_s))
        rows = [one.row() for one in attempts]
        write_atomic(
            self.out / "tune.json", json.dumps({"chosen": chosen.row(), "tried": rows}, indent=1)
        )
