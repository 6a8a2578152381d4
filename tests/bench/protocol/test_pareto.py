"""The front of accuracy against cost: by hand on small results, and one real run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vitune.bench.pareto import front_note, front_of, pareto_study
from vitune.bench.study.cells import CellResult, Scores
from vitune.bench.study.plan import Study
from vitune.bench.tables.front_page import (
    SHORT_HEADS,
    front_lines,
    short_lines,
    write_front_page,
)
from vitune.cli import run
from vitune.errors import VituneError


def result(label: str, seed: int, top1: float, curve: Any, peak: float = 300) -> CellResult:
    return CellResult(
        address="0" * 32, stage="final", label=label, task="digits", group=None,
        protocol="honest", config={}, setting={}, seed=seed, scored_on="test", split_hashes={},
        fingerprint="", status="done", scores=Scores("test", 100, top1, 0.1, 0.1), cpu_seconds=1.0,
        curve=curve, peak_mib=peak,
    )  # fmt: skip


def study(tmp_path: Path, **options: Any) -> Study:
    return pareto_study(["demo"], ["lora"], tmp_path, only=["digits"], seeds=2, **options)


def test_a_front_by_hand(tmp_path: Path) -> None:
    made = study(tmp_path, epochs=[2, 4], speeds=["exact", "fast"])
    labels = [variant.label for variant in made.variants]
    assert labels == ["lora exact 2 ep", "lora exact 4 ep", "lora fast 2 ep", "lora fast 4 ep"]
    assert made.watch
    slow = ((4.0, 8.0, 0.5), (8.0, 16.0, 0.9), (12.0, 24.0, 0.8), (16.0, 32.0, 0.9))
    quick = ((2.0, 4.0, 0.4), (4.0, 8.0, 0.896), (6.0, 12.0, 0.896), (8.0, 16.0, 0.896))
    never = ((2.0, 4.0, 0.4), (4.0, 8.0, 0.89))
    results = [
        *(result(labels[0], seed, 0.7, slow[:2], 310) for seed in (0, 1)),
        result(labels[1], 0, 0.88, slow),
        result(labels[1], 1, 0.92, slow),
        result(labels[2], 0, 0.85, never, 200),
        result(labels[2], 1, 0.85, ((2.0, 4.0, 0.4), (4.0, 8.0, 0.95)), 200),
        *(result(labels[3], seed, 0.89, quick, 250) for seed in (0, 1)),
    ]
    short, exact, fast_short, fast = front_of(made, results)
    assert (exact.accuracy, exact.gain, exact.time_ratio) == (pytest.approx(0.9), 0, 1)
    assert exact.spread == pytest.approx(0.0283, abs=1e-4)
    assert (fast.time_ratio, fast.cpu_ratio) == (0.5, 0.5)
    assert fast.gain == pytest.approx(-0.01)
    assert exact.seconds_to_accuracy == 16 and fast.seconds_to_accuracy == 4
    assert (fast_short.seconds_to_accuracy, fast_short.num_there) == (4, 1)
    on_time = [point.on_time_front for point in (short, exact, fast_short, fast)]
    assert on_time == [False, True, True, True]
    on_memory = [point.on_memory_front for point in (short, exact, fast_short, fast)]
    assert on_memory == [False, True, True, True]
    lines = front_lines([fast_short, fast])
    assert lines[0][-2:] == ("4.0 (1 of 2)", "both") and lines[1][4] == "-1.0"
    assert front_lines([replace(fast, seconds_to_accuracy=None, num_there=0)])[0][-2] == "never"
    assert [len(line) for line in short_lines([fast])] == [len(SHORT_HEADS)]
    assert short_lines([fast])[0][SHORT_HEADS.index("cpu x")] == "0.50"
    page = write_front_page([short, exact, fast_short, fast], tmp_path / "p.html", note="Here.")
    text = page.read_text()
    assert text.count('<path class="front"') == 2 and "Bars are standard deviations" in text
    assert '<td class="text">exact</td>' in text and '<td class="figure">90.0 ± 2.8</td>' in text
    one = write_front_page([replace(exact, spread=None)], tmp_path / "one.html", note="Here.")
    assert "Bars are" not in one.read_text()


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VituneError, match=r"--speeds: got 'quick', expected some of exact, fast"):
        study(tmp_path, speeds=["exact", "quick"])
    with pytest.raises(VituneError, match=r"--speeds: got no exact"):
        study(tmp_path, speeds=["fast"])
    with pytest.raises(VituneError, match=r"--epochs: got \[0\], expected 1 or more"):
        study(tmp_path, epochs=[0])
    with pytest.raises(VituneError, match=r"--suite: got none"):
        pareto_study([], ["lora"], tmp_path)
    with pytest.raises(VituneError, match=r"runs of 'lora exact' without an accuracy"):
        front_of(study(tmp_path), [])
    with pytest.raises(VituneError, match=r"got 'linear', whose head is solved.*'linear_sgd' tr"):
        pareto_study(["demo"], ["lora", "linear"], tmp_path)


def test_a_variant_that_lost_a_run_has_no_point(tmp_path: Path) -> None:
    made = study(tmp_path, speeds=["exact", "fast"])
    curve = ((4.0, 8.0, 0.5),)
    exact = [result("lora exact", seed, top1, curve) for seed, top1 in ((0, 0.9), (1, 0.5))]
    fast = [result("lora fast", 0, 0.88, curve)]  # seed 1 diverged
    (point,) = front_of(made, [*exact, *fast])
    assert point.label == "lora exact"
    note = front_note(made, [*exact, *fast])
    assert "on the test images" in note and note.endswith("no accuracy: lora fast.")
    whole = [replace(one, scored_on="val") for one in (*exact, *fast, replace(fast[0], seed=1))]
    note = front_note(made, whole)
    assert "on validation images" in note and "test images" not in note and "Left" not in note


def test_the_command_writes_table_and_page(
    photos: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    suite = str(photos(splits={"train": 6, "test": 4}))
    words = ["bench", "pareto", "--suite", suite, "--methods", "bitfit", "--epochs", "1"]
    words += ["--speeds", "exact,fast", "--seeds", "1", "--batch-size", "4"]
    assert run([*words, "--out", str(tmp_path / "front")]) == 0
    told = capfd.readouterr().out
    head = next(line for line in told.splitlines() if line.startswith("method "))
    assert tuple(head.replace("cpu x", "cpu_x").split()) == tuple(
        name.replace(" ", "_") for name in SHORT_HEADS
    ), "unbroken in 80 columns"
    assert "bitfit  exact" in told and "bitfit  fast" in told, told
    assert (tmp_path / "front" / "pareto.html").is_file()
    cells = [json.loads(file.read_text()) for file in (tmp_path / "front" / "cells").glob("*.json")]
    assert [len(cell["curve"]) for cell in cells] == [1, 1]
    assert all(0 <= cell["curve"][0][2] <= 1 for cell in cells), "validation is watched"
