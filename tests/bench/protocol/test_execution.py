"""The as-published recipe, cost estimates, comparisons, worker processes and Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vitune.bench.as_published import (
    LaggingSchedule,
    PublishedRecipe,
    WarmRestarts,
    add_element_dropout,
    check_recipe,
)
from vitune.bench.cells import CellResult
from vitune.bench.comparing import compare, comparison_study
from vitune.bench.execution import InProcess, Processes
from vitune.bench.on_ray import OnRay
from vitune.bench.planning import estimate, total_hours
from vitune.bench.protocol import Planner, Watcher, choose, run_study
from vitune.bench.study import Study
from vitune.bench.workbench import Workbench
from vitune.errors import VituneError
from vitune.training.fitting import fit

Make = Callable[..., Study]


class Rates:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def step_update(self, step: int) -> None:
        self.steps.append(step)


def test_the_rate_lags_an_epoch_and_stands_still_within_one() -> None:
    rates = Rates()
    lagging = LaggingSchedule(rates, steps_per_epoch=3)
    for step in range(9):
        lagging.step_update(step)
    assert rates.steps == [0, 0, 0, 0, 0, 0, 3, 3, 3]


def rates_by_epoch(study: Study, recipe: dict[str, Any], epochs: int, bench: Workbench) -> Any:
    """The learning rate of the last step of each epoch of a run under a recipe."""
    rates: list[float] = []

    class Rates(PublishedRecipe):
        def epoch_ended(self, row: dict[str, Any]) -> None:
            rates.append(row["lr"])

    config = study.config(study.variants[0], study.tasks[0], {}, seed=0, refit=True)
    splits = bench.task(config, 0).refit
    test = bench.open_test(config, splits.classes)
    fit(config.model_copy(update={"epochs": epochs}), splits=splits, observer=Rates(test, **recipe))
    return rates


def test_cooldown_follows_the_whole_cosine(tiny_study: Make, bench: Workbench) -> None:
    study = tiny_study(settings={"batch_size": 8, "lr": 0.5, "warmup_epochs": 1, "min_lr": 1e-6})
    recipe = {"schedule_lag": False, "cooldown_epochs": 2}
    rates = rates_by_epoch(study, recipe, 6, bench)
    assert rates[4:] == [1e-6, 1e-6] and rates[3] > 1e-2
    assert max(rates) == pytest.approx(0.5, rel=0.15)


def test_cooldown_lengthens_the_as_published_run_alone(tiny_study: Make, bench: Workbench) -> None:
    variants = [{"label": "a", "method": "linear", "recipe": {"cooldown_epochs": 10}}]
    for protocol, epochs in (("as-published", 13), ("honest", 3)):
        study = tiny_study(variants=variants, protocol=protocol, epochs=3)
        planner = Planner(study, bench)
        choice = choose(study, study.variants[0], study.tasks[0], [])
        assert choice is not None
        (cell,) = planner.final_cells(study.variants[0], study.tasks[0], choice)
        assert cell.config.epochs == epochs


def test_warm_restarts_of_the_official_script_end_at_54_percent() -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    optimiser.param_groups[0]["initial_lr"] = 2.0
    lagging = LaggingSchedule(WarmRestarts(optimiser, 3, 10, 2), steps_per_epoch=3)
    rates = []
    for step in range(3 * 110):
        lagging.step_update(step)
        rates.append(optimiser.param_groups[0]["lr"])
    by_epoch = rates[::3]
    assert rates == [rate for rate in by_epoch for _ in range(3)]
    assert [n for n, rate in enumerate(by_epoch) if rate == 2.0] == [0, 1, 11, 31, 71]
    assert by_epoch[-1] / 2 == pytest.approx(0.54, abs=0.005)


def test_element_dropout_rises_over_the_blocks() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.mlp = nn.Identity(), nn.Identity()

    model = nn.Sequential(Block(), Block(), Block())
    add_element_dropout(model, 0.5)
    ones = torch.ones(1, 100_000)
    for block, p in zip(model, (0.0, 0.25, 0.5), strict=True):
        for branch in (block.attn, block.mlp):
            dropped = (branch.train()(ones) == 0).float().mean().item()
            assert dropped == pytest.approx(p, abs=0.01)
            assert torch.equal(branch.eval()(ones), ones)
    with pytest.raises(VituneError, match=r"without blocks of attn and mlp"):
        add_element_dropout(nn.Linear(2, 2), 0.1)


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        ({"element_drop": 0.1}, "got 'element_drop'.*Did you mean element_dropout"),
        ({"element_dropout": 1.0}, "element_dropout: got 1.0"),
        ({"skip_epochs": True}, "skip_epochs: got True.*0 or more"),
        ({"restart_factor": 0}, "restart_factor: got 0.*1 or more"),
    ],
)
def test_odd_recipes(recipe: dict[str, Any], match: str) -> None:
    with pytest.raises(VituneError, match=match):
        check_recipe(recipe)


def test_an_estimate_measures_without_opening_the_test_split(
    tiny_study: Make, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the test split was opened")

    monkeypatch.setattr(Workbench, "open_test", refuse)
    study = tiny_study(grid=[{"lr": 1e-3}, {"lr": 1e-2}], seeds=[0, 1, 2])
    (found,) = estimate(study, bench)
    assert found.num_cells == 5 and found.step_ms > 0 and found.peak_mib > 0
    steps = 2 * 2 + 3 * 3  # two settings of 16 images, three seeds of 24, in batches of 8
    assert found.hours * 3.6e6 >= steps * found.step_ms
    assert total_hours([found], 2) == pytest.approx(found.hours / 2)
    longer = study.model_copy(update={"epochs": 100, "protocol": "as-published"})
    assert estimate(longer, bench)[0].num_cells == 5


def test_compare_writes_a_page(tmp_path: Path, bench: Workbench) -> None:
    study = comparison_study(
        "demo:count?train=16&val=8&test=16",
        ["linear", "bitfit"],
        epochs=1,
        lrs=[1e-3, 1e-2],
        seeds=1,
        settings={"batch_size": 8},
    )
    assert study.tasks[0].name == "count"
    found = compare(study, tmp_path, executor=InProcess(bench))
    assert [row.label for row in found.table.rows] == ["linear", "bitfit"]
    text = found.page.read_text()
    assert "Linear probe" in text and "One seed only" in text and "test images" in text
    assert "Learning rate" in text and "best of 2 on validation" in text
    assert "95 % of the mean differences when images" in text


def test_compare_without_a_test_split_says_validation(tmp_path: Path, bench: Workbench) -> None:
    study = comparison_study(
        "demo:count?train=16&val=8&test=0", ["linear"], epochs=1, seeds=[4],
        settings={"batch_size": 8},
    )  # fmt: skip
    text = compare(study, tmp_path, executor=InProcess(bench)).page.read_text()
    assert "validation images, because the data has no test split" in text


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"methods": []}, "--methods: got none"),
        ({"methods": ["linear", "linear"]}, "got 'linear' twice"),
        ({"methods": ["linear"], "seeds": 0}, "--seeds: got 0"),
        ({"methods": ["linear"], "method_args": {"lora": {}}}, "got arguments for 'lora'"),
    ],
)
def test_odd_comparisons(values: dict[str, Any], match: str) -> None:
    with pytest.raises(VituneError, match=match):
        comparison_study("demo:count", **values)


def test_compare_with_nothing_finished(tmp_path: Path, bench: Workbench) -> None:
    study = comparison_study(
        "demo:count?train=16&val=8&test=16", ["linear"], settings={"batch_size": 1000}, epochs=1
    )
    with pytest.raises(VituneError, match=r"got no finished run. The first error: DataError"):
        compare(study, tmp_path, executor=InProcess(bench))


def test_worker_processes_survive_the_death_of_one(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    import multiprocessing

    class Killer(Watcher):
        def __init__(self) -> None:
            self.addresses: list[str] = []

        def finished(self, result: CellResult, reused: bool) -> None:
            if not self.addresses:
                victim = multiprocessing.active_children()[0]
                assert victim.pid is not None
                os.kill(victim.pid, signal.SIGKILL)
            self.addresses.append(result.address)

    killer = Killer()
    study = tiny_study(seeds=list(range(3)))
    outcome = run_study(study, tmp_path, executor=Processes(1, bench), watcher=killer)
    assert [result.status for result in outcome.results] == ["done"] * 3
    assert len(killer.addresses) == len(set(killer.addresses)) == 3


def test_ray_runs_the_same_cells_and_survives_a_worker(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra vitune[ray], which is not installed")
    study = tiny_study(seeds=list(range(6)))
    killed: list[int] = []

    def kill_one() -> None:
        """The worker in the middle of a cell, as soon as the first result is there."""
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and not list(tmp_path.glob("cells/*.json")):
            time.sleep(0.02)
        while time.monotonic() < deadline and not killed:  # a worker may be between two cells
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    name = (process / "cmdline").read_text().replace("\0", " ")
                    parents = (process / "environ").read_text()
                except OSError:
                    continue
                if name.startswith("ray::_complete") and f"TEST_OF={os.getpid()}" in parents:
                    os.kill(int(process.name), signal.SIGKILL)
                    killed.append(int(process.name))
                    return

    os.environ["TEST_OF"] = str(os.getpid())
    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    try:
        outcome = run_study(study, tmp_path, executor=OnRay("local", num_workers=2, bench=bench))
    finally:
        del os.environ["TEST_OF"]
        thread.join()
    assert killed and not ray.is_initialized()
    assert [result.status for result in outcome.results] == ["done"] * 6
    assert len(list((tmp_path / "cells").glob("*.json"))) == 6
    again = run_study(study, tmp_path, executor=InProcess(bench))
    assert again.num_reused == 6


@pytest.mark.parametrize("values", [{"cpus_per_cell": 0}, {"gpus_per_cell": -1}])
def test_odd_shares_of_a_cluster(values: dict[str, float]) -> None:
    with pytest.raises(VituneError, match=r"--ray: got"):
        OnRay("local", **values)  # type: ignore[arg-type]


def test_ray_that_is_not_installed(
    tiny_study: Make, bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(VituneError, match=r"pip install 'vitune\[ray\]'"):
        run_study(tiny_study(), tmp_path, executor=OnRay("local", bench=bench))


ORPHAN = """
import multiprocessing, os, time
from vitune.bench.execution import begin_worker

def work():
    begin_worker(1)
    print(os.getpid(), flush=True)
    time.sleep(300)

if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=work)
    worker.start()
    worker.join()
"""


def test_a_worker_ends_with_a_study_that_was_killed(tmp_path: Path) -> None:
    import psutil

    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as study:
        assert study.stdout is not None
        worker = psutil.Process(int(study.stdout.readline()))
        assert worker.is_running()
        study.kill()
    deadline = time.monotonic() + 60
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)
