"""Choose on validation, refit, test once; continue after a kill; failures stay in their cell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitune.bench.study import running
from vitune.bench.study.cells import Cell, CellResult
from vitune.bench.study.execution import InProcess, Processes
from vitune.bench.study.plan import Study
from vitune.bench.study.protocol import Planner, Watcher, choose, read_results, run_study
from vitune.bench.study.running import (
    complete,
)
from vitune.bench.study.store import Store
from vitune.bench.study.workbench import Workbench
from vitune.data import open_source
from vitune.data.split import Split
from vitune.errors import DataError, TrainingError, VituneError
from vitune.training import TrainConfig
from vitune.training.fitting import fit

Make = Callable[..., Study]

TINY = "demo:count?train=16&val=8&test=16"


class Log(Watcher):
    def __init__(self) -> None:
        self.lines: list[tuple[str, str, bool]] = []
        self.num_planned = 0

    def planned(self, num_cells: int) -> None:
        self.num_planned = num_cells

    def finished(self, result: CellResult, reused: bool) -> None:
        self.lines.append((result.stage, result.status, reused))


def test_a_study_searches_refits_and_tests_once(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    study = tiny_study(grid=[{"lr": 1e-3}, {"lr": 1e-2}], seeds=[0, 1], retention=True)
    log = Log()
    outcome = run_study(study, tmp_path, executor=InProcess(bench), watcher=log)
    assert Counter(log.lines) == {("select", "done", False): 2, ("final", "done", False): 2}
    assert log.num_planned == 4
    (choice,) = outcome.choices
    assert choice.val == max(val for _, val in choice.tried if val is not None)
    for result in outcome.results:
        assert result.sizes["train"] == 24  # 16 + 8: the refit sees validation too
        assert result.scores is not None and result.scores.split == "test"
        assert result.scores.num_images == 16 and 0 <= result.scores.ece <= 1
        assert result.retention is not None and result.retention["cka_last"] > 0.99
        assert result.val == choice.val
        assert result.counts["without_head"] == 0
    assert all(r.scores is None and r.sizes["train"] == 16 for r in outcome.selection)
    again = run_study(study, tmp_path, executor=InProcess(bench))
    assert again.num_reused == 4
    assert again.results == outcome.results
    assert read_results(tmp_path) == list(outcome.results)


def test_another_grid_reuses_what_it_shares(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    first = tiny_study(grid=[{"lr": 1e-3}, {"lr": 1e-2}])
    run_study(first, tmp_path, executor=InProcess(bench))
    wider = tiny_study(
        variants=[
            {"label": "linear_sgd", "method": "linear_sgd"},
            {"label": "another name", "method": "linear_sgd"},
        ],
        grid=[{"lr": 1e-3}, {"lr": 1e-2}, {"lr": 1e-1}],
    )
    outcome = run_study(wider, tmp_path, executor=InProcess(bench))
    assert outcome.num_reused >= 2
    assert {result.label for result in outcome.results} == {"linear_sgd", "another name"}


def test_ties_go_to_the_lower_rate(tiny_study: Make, result: Any) -> None:
    grid = [{"lr": 1e-2}, {"lr": 1e-3, "weight_decay": 0.1}, {"lr": 1e-3, "weight_decay": 0.0}]
    study = tiny_study(grid=grid)
    found = [result(stage="select", val=0.5) for _ in grid]
    choice = choose(study, study.variants[0], study.tasks[0], found)
    assert choice is not None and choice.setting == grid[2]
    best = [result(stage="select", val=value) for value in (0.6, 0.5, None)]
    choice = choose(study, study.variants[0], study.tasks[0], best)
    assert choice is not None and choice.setting == grid[0]
    none = [result(stage="select", val=None) for _ in grid]
    assert choose(study, study.variants[0], study.tasks[0], none) is None


def test_without_a_test_split_validation_is_reported(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    task = {"name": "count", "data": "demo:count?train=16&val=8&test=0"}
    outcome = run_study(tiny_study(tasks=[task]), tmp_path, executor=InProcess(bench))
    (result,) = outcome.results
    assert result.scored_on == "val" and result.sizes["train"] == 16
    assert result.scores is not None and result.scores.num_images == 8
    with pytest.raises(DataError, match=r"without a test split"):
        asked = tiny_study(tasks=[task], report_on="test")
        run_study(asked, tmp_path / "test", executor=InProcess(bench))


def test_shuffled_test_labels_choose_the_same_setting(
    tiny_study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(grid=[{"lr": 1e-4}, {"lr": 1e-2}, {"lr": 1e-1}])
    before = run_study(study, tmp_path / "true", executor=InProcess(Workbench()))
    true_test = Workbench.open_test

    def shuffled(self: Workbench, config: TrainConfig, classes: tuple[str, ...]) -> Split:
        split = true_test(self, config, classes)
        labels = (split.labels + 1) % len(classes)
        return Split(split.name, split.images, labels, split.paths, classes, split.digests)

    monkeypatch.setattr(Workbench, "open_test", shuffled)
    after = run_study(study, tmp_path / "shuffled", executor=InProcess(Workbench()))
    assert [c.setting for c in after.choices] == [c.setting for c in before.choices]
    assert [c.tried for c in after.choices] == [c.tried for c in before.choices]
    scores = [[r.scores for r in outcome.results] for outcome in (before, after)]
    assert scores[0] != scores[1]


def test_stage_1_never_opens_the_test_split(
    tiny_study: Make, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(grid=[{"lr": 1e-3}, {"lr": 1e-2}])
    planner = Planner(study, bench)
    cells = planner.selection_cells(study.variants[0], study.tasks[0])

    def refuse(*_: Any) -> Split:
        raise AssertionError("the test split was opened")

    monkeypatch.setattr(Workbench, "open_test", refuse)
    assert len(cells) == 2
    assert running.run_cell(cells[0], bench).status == "done"


def test_fit_refuses_a_test_split(bench: Workbench, tiny_study: Make) -> None:
    from dataclasses import replace

    study = tiny_study()
    config = study.config(study.variants[0], study.tasks[0], {}, seed=0, refit=False)
    splits = bench.task(config, 0).selection
    test = bench.open_test(config, splits.classes)
    with pytest.raises(DataError, match=r"got a test split or no training split"):
        fit(config, splits=replace(splits, test=test))


def test_the_address_knows_what_decides_a_result(tiny_study: Make, bench: Workbench) -> None:
    study = tiny_study()
    planner = Planner(study, bench)
    choice = choose(study, study.variants[0], study.tasks[0], [])
    assert choice is not None
    (cell,) = planner.final_cells(study.variants[0], study.tasks[0], choice)
    base = vars(cell)
    same = Cell(**{**base, "label": "other", "val": 0.3, "task": "other"})
    assert same.address == cell.address
    moved = cell.config.model_copy(update={"data": "elsewhere", "device": "cpu"})
    assert Cell(**{**base, "config": moved}).address == cell.address
    for change in (
        {"config": cell.config.model_copy(update={"seed": 5})},
        {"config": cell.config.model_copy(update={"lr": 0.5})},
        {"split_hashes": {**cell.split_hashes, "test": "other"}},
        {"identity": "other"},
        {"stage": "select"},
        {"scored_on": "val"},
        {"recipe": {"rate_per": "epoch"}},
        {"retention": True},
    ):
        assert Cell(**{**base, **change}).address != cell.address


def one_cell(study: Study, bench: Workbench) -> Cell:
    choice = choose(study, study.variants[0], study.tasks[0], [])
    assert choice is not None
    return Planner(study, bench).final_cells(study.variants[0], study.tasks[0], choice)[0]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', '{"format": 1}', "\xff"])
def test_a_damaged_file_is_reported_and_run_again(
    tiny_study: Make,
    bench: Workbench,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell, store = one_cell(tiny_study(), bench), Store(tmp_path)
    store.cells.mkdir()
    store.file(cell.address).write_bytes(text.encode("latin-1"))
    done = running.blank_result(cell, "done")
    monkeypatch.setattr(running, "run_cell", lambda *_, **__: done)
    result, reused = complete(cell, store, bench)
    assert not reused and "damaged and is replaced" in result.notes[0]
    assert "starting the study again runs the cell again" in caplog.text
    found = store.read(cell.address)
    assert found is not None and found.status == "done"


def test_an_edited_result_is_reported_and_run_again(
    tmp_path: Path, result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.write(written := result())
    file = store.file(written.address)
    assert store.read(written.address) == written
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values, sort_keys=True))
    assert store.read(written.address) == written
    values["scores"]["top1"] += 0.01
    file.write_text(json.dumps(values))
    assert store.read(written.address) is None and "were edited after the run" in caplog.text
    del values["sha256"]  # as in results of earlier releases
    file.write_text(json.dumps(values))
    assert store.read(written.address) is not None


def test_a_result_under_a_wrong_name_is_not_taken(
    tmp_path: Path, result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.write(result())
    store.file("a-t-0").rename(store.file("b"))
    assert store.read("b") is None and "got the result of a-t-0" in caplog.text
    assert store.read("absent") is None


def test_a_full_disk_fails_the_cell_and_not_the_study(
    tiny_study: Make, bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(seeds=[0, 1])
    write = Store.write

    def full(self: Store, result: CellResult) -> None:
        if result.seed == 0:
            raise OSError(28, "No space left on device")
        write(self, result)

    monkeypatch.setattr(Store, "write", full)
    outcome = run_study(study, tmp_path, executor=InProcess(bench))
    assert [result.status for result in outcome.results] == ["failed", "done"]
    assert "No space left" in str(outcome.failures[0].error)
    monkeypatch.undo()
    healed = run_study(study, tmp_path, executor=InProcess(bench))
    assert [result.status for result in healed.results] == ["done", "done"]
    assert healed.num_reused == 1


def test_a_divergence_is_a_result_and_a_failure_is_tried_again(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    cell, store = one_cell(tiny_study(), bench), Store(tmp_path)
    calls = []

    def diverge(*_: Any, **__: Any) -> Any:
        calls.append(1)
        raise TrainingError("loss: got nan")

    for reused in (False, True):
        result, was_there = complete(cell, store, bench, train=diverge)
        assert (result.status, was_there) == ("diverged", reused)
    assert len(calls) == 1
    other = Store(tmp_path / "other")

    def break_down(*_: Any, **__: Any) -> Any:
        raise RuntimeError("boom")

    result, _ = complete(cell, other, bench, train=break_down)
    assert result.status == "failed" and result.error == "RuntimeError: boom"
    assert complete(cell, other, bench)[0].status == "done"


DRIVER = """
import sys
from vitune.bench.study.protocol import Watcher, run_study
from vitune.bench.study.plan import Study
class Tell(Watcher):
    def finished(self, result, reused):
        print("finished", result.address, reused, flush=True)
run_study(Study.read(sys.argv[1]), sys.argv[2], watcher=Tell())
"""


def test_a_killed_driver_loses_no_cell_and_repeats_none(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    import yaml

    study = tiny_study(seeds=list(range(40)))
    file, out = tmp_path / "study.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(file), str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert driver.stdout is not None
    told = [driver.stdout.readline().split() for _ in range(2)]
    time.sleep(0.05)  # into the middle of the third cell
    driver.send_signal(signal.SIGKILL)
    rest = driver.communicate()[0].split("\n")
    assert driver.returncode == -signal.SIGKILL
    told += [line.split() for line in rest if line]
    kept = {path.stem: path.read_bytes() for path in (out / "cells").glob("*.json")}
    assert {line[1] for line in told} <= set(kept) and len(kept) < 40
    fewer = tiny_study(seeds=list(range(len(kept) + 1)))
    outcome = run_study(fewer, out, executor=InProcess(bench))
    assert outcome.num_reused == len(kept)
    assert all(result.status == "done" for result in outcome.results)
    for name, content in kept.items():
        assert (out / "cells" / f"{name}.json").read_bytes() == content


def test_a_claim_makes_a_second_runner_wait_for_the_first(
    tiny_study: Make, bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    cell, store = one_cell(tiny_study(), bench), Store(tmp_path)
    runs = []

    def slow(*_: Any, **__: Any) -> CellResult:
        runs.append(1)
        time.sleep(0.2)
        return running.blank_result(cell, "done")

    monkeypatch.setattr(running, "run_cell", slow)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(complete, cell, Store(tmp_path), bench) for _ in range(2)]
    assert len(runs) == 1
    assert sorted(found.result()[1] for found in both) == [False, True]
    assert store.read(cell.address) is not None


def test_jobs_must_be_positive() -> None:
    with pytest.raises(VituneError, match=r"--jobs: got 0"):
        Processes(0)


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VituneError, match=r"without study.yaml"):
        read_results(tmp_path)


def test_scores_count_the_right_images(bench: Workbench, tiny_study: Make) -> None:
    from vitune.bench.study.scores import packed, unpacked

    bits = np.array([True, False, True] * 7)
    np.testing.assert_array_equal(unpacked(packed(bits), 21), bits)
    result = running.run_cell(one_cell(tiny_study(), bench), bench)
    assert result.scores is not None
    right = unpacked(result.scores.correct, result.scores.num_images)
    assert right.mean() == pytest.approx(result.scores.top1)
    num_test = len(open_source(TINY).splits["test"])
    assert json.loads(result.to_json())["scores"]["num_images"] == num_test
    assert CellResult.from_json(result.to_json()) == result
