"""Studies so small that they train in seconds, and results made by hand for tables."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from study_parts import paint

from vitune.bench.study.cells import CellResult, Scores
from vitune.bench.study.plan import Study
from vitune.bench.study.scores import packed
from vitune.bench.study.workbench import Workbench

TINY = "demo:count?train=16&val=8&test=16"


@pytest.fixture(scope="session")
def bench() -> Workbench:
    """One workbench for all tests: the tiny task is decoded once."""
    return Workbench()


@pytest.fixture
def tiny_study() -> Callable[..., Study]:
    """A study of the linear probe on the tiny task; keywords replace fields."""

    def make(**changes: Any) -> Study:
        values = {
            "variants": [{"label": "linear_sgd", "method": "linear_sgd"}],
            "tasks": [{"name": "count", "data": TINY}],
            "epochs": 1,
            "settings": {"batch_size": 8},
            "seeds": [0],
        }
        return Study.make({**values, **changes})

    return make


@pytest.fixture
def result() -> Callable[..., CellResult]:
    """A finished final result; keywords replace fields, `top1` and `correct` its scores."""

    def make(
        label: str = "a",
        task: str = "t",
        top1: float = 0.5,
        seed: int = 0,
        correct: list[bool] | None = None,
        **changes: Any,
    ) -> CellResult:
        bits = correct or [True, False]
        values: dict[str, Any] = {
            "address": f"{label}-{task}-{seed}",
            "stage": "final",
            "label": label,
            "task": task,
            "group": None,
            "protocol": "honest",
            "config": {"method": label, "backbone": "tiny", "lr": 0.1, "seed": seed},
            "setting": {},
            "seed": seed,
            "scored_on": "test",
            "split_hashes": {"train": "1", "test": "2"},
            "fingerprint": "v1-0",
            "status": "done",
            "scores": Scores("test", len(bits), top1, 1.0, 0.1, packed(bits)),
            "seconds": 2.0,
            "cpu_seconds": 1.5,
            "peak_mib": 10.0,
            "counts": {"trainable": 10, "without_head": 6, "head": 4, "total": 100},
        }
        return CellResult(**{**values, **changes})

    return make


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """Class folders of small BMP files, which all have the same number of bytes."""

    def make(
        name: str = "photos",
        splits: Mapping[str, int] | None = None,
        classes: tuple[str, ...] = ("ant", "bee"),
    ) -> Path:
        sizes = {"train": 4, "val": 2, "test": 4} if splits is None else splits
        seed = zlib.crc32(name.encode())
        for split, each in sizes.items():
            for label in classes:
                for number in range(each):
                    seed += 1
                    paint(tmp_path / name / split / label / f"{number}.bmp", seed)
        return tmp_path / name

    return make
