"""What fuzzing has found, each with the line that is told now."""

from __future__ import annotations

from typing import Any

import pytest
from cases import Case
from place import Place

RESUME = "train --out stopped --resume"
TRAIN = "train --data photos --epochs 1 --image-size 16 --out new"
COMPARE = "compare --data photos --methods linear --epochs 1 --image-size 16 --seeds 1 --out"
DRY_RUN = "bench run --suite demo --methods linear --tasks digits --dry-run --out new"

FOUND: list[tuple[str, str, list[Any], str]] = [
    ("run/images.npz", "evaluate run", ["replace", 1, -1], "got a damaged list of images"),
    ("stopped/checkpoint/state.json", RESUME, ["replace", 2, 7], "got a damaged file"),
    ("notes.txt", f"{COMPARE} .", ["text", ""], "which exists, expected a new folder"),
    ("notes.txt", "bench study study.yaml --out .", ["text", ""], "which exists, expected a new"),
    ("stopped/checkpoint", RESUME, ["socket"], "no state.json in it"),
    ("stopped/checkpoint/tensors.safetensors", RESUME, ["delete"], "no tensors.safetensors in it"),
    ("stopped/metrics.jsonl", RESUME, ["replace", 5, [0]], "metrics.jsonl line 1"),
    ("run/evaluation", "train --out run --resume --epochs 2", ["text", "{"], "photos-val.json"),
    ("run/adapter/vitune.json", "evaluate run", ["swap", 5, 0], "backbone_args"),
    ("study/study.jsonl", "bench defaults study", ["rename", 7, "odd"], ""),
    ("study/cells/*", "bench table study", ["replace", 23, "odd"], ""),
    ("train.yaml", "train --config train.yaml --out new", ["text", "1: 2"], "got the key 1 in"),
    ("notes.txt", "predict run photos --device 0", ["text", ""], "--device: got '0', expected"),
    ("notes.txt", "demo --out new --epochs 0", ["text", ""], "epochs: got 0"),
    ("notes.txt", f"{TRAIN} --batch-size 9655384737910817", ["text", ""], "memory: got steps of"),
    ("notes.txt", f"{TRAIN} --dp-epsilon 6815565697348812.0", ["text", ""], "dp_epsilon: got"),
    ("stopped/probe/probe.json", f"{RESUME} --force", ["replace", 0, "nan"], ""),
    ("notes.txt", f"{COMPARE} new --jobs 99999999999999", ["text", ""], ""),
    ("notes.txt", f"{DRY_RUN} --jobs 0", ["text", ""], "--jobs: got 0, expected 1 or more"),
]


@pytest.mark.parametrize(("target", "command", "draw", "told"), FOUND)
def test_found(place: Place, target: str, command: str, draw: list[Any], told: str) -> None:
    case = Case("file", target, command.split(), draw)
    assert not place.faults(case), place.told_on("stderr")
    assert told in place.told_on("stderr")
