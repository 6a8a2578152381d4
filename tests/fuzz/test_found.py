"""What fuzzing has found, each with the line that is told now."""

from __future__ import annotations

from typing import Any

import pytest
from cases import Case
from place import Place

RESUME = "train --out stopped --resume"
COMPARE = "compare --data photos --methods linear --epochs 1 --image-size 16 --seeds 1 --out"

FOUND: list[tuple[str, str, list[Any], str]] = [
    ("run/images.npz", "evaluate run", ["replace", 0, -1], "got a damaged list of images"),
    ("stopped/checkpoint/state.json", RESUME, ["replace", 0, 7], "got a damaged file"),
    ("notes.txt", f"{COMPARE} .", ["text", ""], "which exists, expected a new folder"),
    ("notes.txt", "bench study study.yaml --out .", ["text", ""], "which exists, expected a new"),
    ("notes.txt", f"{COMPARE} new --jobs 99999999999999", ["text", ""], ""),
]


@pytest.mark.parametrize(("target", "command", "draw", "told"), FOUND)
def test_found(place: Place, target: str, command: str, draw: list[Any], told: str) -> None:
    case = Case("file", target, command.split(), draw)
    assert not place.faults(case), place.told_on("stderr")
    assert told in place.told_on("stderr")
