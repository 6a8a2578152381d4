"""The as-published recipe, cost estimates, comparisons, worker processes and Ray."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import nn

from vitune.bench.comparing import compare, comparison_study
from vitune.bench.cost import estimate, total_hours
from vitune.bench.study.as_published import (
    PublishedRecipe,
    add_element_dropout,
    renormalise_drop_path,
)
from vitune.bench.study.cells import CellResult
from vitune.bench.study.execution import InProcess, Processes
from vitune.bench.study.on_ray import OnRay
from vitune.bench.study.plan import Study
from vitune.bench.study.protocol import Planner, Watcher, choose, run_study
from vitune.bench.study.recipe import OfficialRecipe
from vitune.bench.study.running import run_cell
from vitune.bench.study.workbench import Workbench
from vitune.errors import VituneError
from vitune.training.fitting import fit

Make = Callable[..., Study]


def rates_by_step(study: Study, recipe: dict[str, Any], epochs: int, bench: Workbench) -> Any:
    """The learning rate of every step of a run under a recipe."""
    rates: list[float] = []

    class Rates(PublishedRecipe):
        def stepped(self, step: int, loss: float, num_images: int) -> None:
            rates.append(self.loop.raw_optimiser.param_groups[0]["lr"])

    config = study.config(study.variants[0], study.tasks[0], {}, seed=0, refit=True)
    splits = bench.task(config, 0).refit
    test = bench.open_test(config, splits.classes)
    observer = Rates.make(recipe, test)
    fit(config.model_copy(update={"epochs": epochs}), splits=splits, observer=observer)
    return rates


def test_a_run_steps_with_the_rates_of_its_recipe(tiny_study: Make, bench: Workbench) -> None:
    """24 images in batches of 8 are three steps an epoch; tests/bench/presets has whole runs."""
    settings = {"batch_size": 8, "lr": 0.5, "warmup_epochs": 2, "min_lr": 0.01}
    recipe = {"rate_per": "epoch", "lag_epochs": 1, "cosine_from": "start", "cooldown_epochs": 2}
    rates = rates_by_step(tiny_study(settings=settings), recipe, 6, bench)
    cosine = [0.01 + 0.245 * (1 + math.cos(math.pi * epoch / 4)) for epoch in (2, 3)]
    by_epoch = [1e-7, 1e-7, (1e-7 + 0.5) / 2, *cosine, 0.01]
    assert rates == pytest.approx([rate for rate in by_epoch for _ in range(3)])


def test_cooldown_follows_the_whole_cosine(tiny_study: Make, bench: Workbench) -> None:
    study = tiny_study(settings={"batch_size": 8, "lr": 0.5, "warmup_epochs": 1, "min_lr": 1e-6})
    rates = rates_by_step(study, {"cooldown_epochs": 2}, 6, bench)[2::3]
    assert rates[4:] == [1e-6, 1e-6] and rates[3] > 1e-2
    assert max(rates) == pytest.approx(0.5, rel=0.15)


def test_the_averages_are_scored_and_left_in_the_network(
    tiny_study: Make, bench: Workbench
) -> None:
    """The test accuracy of an epoch is that of the averaged weights, whose decay is constant."""
    settings = {"batch_size": 8, "lr": 1.0, "ema": 0.9, "ema_ramp": False, "warmup_epochs": 0}
    study = tiny_study(settings=settings, epochs=2)
    config = study.config(study.variants[0], study.tasks[0], {}, seed=0, refit=True)
    splits = bench.task(config, 0).refit
    test = bench.open_test(config, splits.classes)
    averages: dict[str, torch.Tensor] = {}
    by_hand: list[float] = []

    class Watch(PublishedRecipe):
        def started(self, loop: Any) -> None:
            super().started(loop)
            averages.update({n: p.detach().clone() for n, p in loop.parameters.items()})

        def stepped(self, step: int, loss: float, num_images: int) -> None:
            for name, parameter in self.loop.parameters.items():
                averages[name] = 0.9 * averages[name] + 0.1 * parameter.detach()

        def epoch_ended(self, row: dict[str, Any]) -> None:
            super().epoch_ended(row)
            own = {name: p.detach().clone() for name, p in self.loop.parameters.items()}
            with torch.no_grad():
                for name, p in self.loop.parameters.items():
                    p.copy_(averages[name])
                by_hand.append(self.loop.evaluate(test)[0])
                with self.loop.scored_weights():
                    assert self.loop.evaluate(test)[0] == pytest.approx(by_hand[-1], abs=1e-5)
                for name, p in self.loop.parameters.items():
                    p.copy_(own[name])

    trained = fit(config, splits=splits, observer=Watch.make({}, test))
    head = {n: p for n, p in trained.model.named_parameters() if p.requires_grad}
    assert len(by_hand) == 2 and by_hand[0] != by_hand[1]
    for name, parameter in head.items():
        torch.testing.assert_close(parameter.detach(), averages[name], atol=1e-6, rtol=1e-5)


def test_the_test_split_is_scored_as_often_as_the_script_does(
    tiny_study: Make, bench: Workbench
) -> None:
    study = tiny_study(epochs=5)
    config = study.config(study.variants[0], study.tasks[0], {}, seed=0, refit=True)
    splits = bench.task(config, 0).refit
    observer = PublishedRecipe.make({"score_every": 2}, bench.open_test(config, splits.classes))
    fit(config, splits=splits, observer=observer)
    seen = observer.outcome()
    assert seen["scored_epochs"] == [2, 4, 5] and len(seen["test_by_epoch"]) == 3
    assert seen["test_last"] == seen["test_by_epoch"][-1]


@pytest.mark.parametrize(
    ("skip", "best", "epoch"), [(0, 0.9, 1), (1, 0.8, 3), (3, 0.7, 4), (9, 0.7, 4)]
)
def test_the_maximum_leaves_out_what_the_script_does(skip: int, best: float, epoch: int) -> None:
    observer = PublishedRecipe.make({"skip_epochs": skip}, None)  # type: ignore[arg-type]
    observer.test_accuracies.update({1: 0.9, 2: 0.5, 3: 0.8, 4: 0.7})
    seen = observer.outcome()
    assert (seen["test_max"], seen["best_epoch"], seen["test_last"]) == (best, epoch, 0.7)


def test_as_published_may_train_on_train_alone(tiny_study: Make, bench: Workbench) -> None:
    for recipe, images in (({}, 24), ({"train_on": "train"}, 16)):
        variants = [{"label": "a", "method": "linear_sgd", "recipe": recipe}]
        study = tiny_study(variants=variants, protocol="as-published")
        choice = choose(study, study.variants[0], study.tasks[0], [])
        assert choice is not None
        (cell,) = Planner(study, bench).final_cells(study.variants[0], study.tasks[0], choice)
        result = run_cell(cell, bench)
        assert result.status == "done", result.error
        assert result.sizes["train"] == images and result.scored_on == "test"
        assert result.published is not None and result.published["scored_epochs"] == [1]


def test_cooldown_lengthens_the_as_published_run_alone(tiny_study: Make, bench: Workbench) -> None:
    variants = [{"label": "a", "method": "linear_sgd", "recipe": {"cooldown_epochs": 10}}]
    for protocol, epochs in (("as-published", 13), ("honest", 3)):
        study = tiny_study(variants=variants, protocol=protocol, epochs=3)
        planner = Planner(study, bench)
        choice = choose(study, study.variants[0], study.tasks[0], [])
        assert choice is not None
        (cell,) = planner.final_cells(study.variants[0], study.tasks[0], choice)
        assert cell.config.epochs == epochs


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


def test_a_renormalised_mask_has_mean_one_in_every_batch() -> None:
    model = nn.Sequential(nn.Sequential(DropPath(0.5), nn.Identity()), DropPath(0.0))
    renormalise_drop_path(model)
    x = torch.ones(64, 3, 2)
    y = model.train()(x)
    kept = (y[:, 0, 0] > 0).float()
    assert 10 < kept.sum() < 54
    torch.testing.assert_close(y, (kept / kept.mean()).view(-1, 1, 1).expand_as(y))
    assert y.mean().item() == pytest.approx(1.0)
    assert torch.equal(model.eval()(x), x)


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        ({"element_drop": 0.1}, "element_drop: unknown option. Did you mean element_dropout"),
        ({"element_dropout": 1.0}, "element_dropout: got 1.0"),
        ({"skip_epochs": True}, "skip_epochs: got True"),
        ({"restart_factor": 0}, "restart_factor: got 0"),
        ({"rate_per": "batch"}, "rate_per: got 'batch'"),
    ],
)
def test_odd_recipes(recipe: dict[str, Any], match: str) -> None:
    with pytest.raises(VituneError, match=f"recipe: {match}"):
        OfficialRecipe.make(recipe)


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
    solved = tiny_study(variants=[{"label": "linear", "method": "linear"}], seeds=[0])
    (found,) = estimate(solved, bench)
    assert found.step_ms is None and found.hours > 0


def test_compare_writes_a_page(tmp_path: Path, bench: Workbench) -> None:
    study = comparison_study(
        "demo:count?train=16&val=8&test=16",
        ["linear_sgd", "bitfit"],
        epochs=1,
        lrs=[1e-3, 1e-2],
        seeds=1,
        settings={"batch_size": 8},
    )
    assert study.tasks[0].name == "count"
    found = compare(study, tmp_path, executor=InProcess(bench))
    assert [row.label for row in found.table.rows] == ["linear_sgd", "bitfit"]
    text = found.page.read_text()
    assert "Linear probe" in text and "One seed only" in text and "test images" in text
    assert "Learning rate" in text and "best of 2 on validation" in text
    assert "with other draws of the images" in text


def test_compare_without_a_test_split_says_validation(tmp_path: Path, bench: Workbench) -> None:
    study = comparison_study(
        "demo:count?train=16&val=8&test=0", ["linear_sgd"], epochs=1, seeds=[4],
        settings={"batch_size": 8},
    )  # fmt: skip
    text = compare(study, tmp_path, executor=InProcess(bench)).page.read_text()
    assert "validation images, because the data has no test split" in text


def test_a_comparison_takes_paths_and_numbers_of_any_library(tmp_path: Path) -> None:
    study = comparison_study(
        tmp_path / "photos", np.array(["lora"]), lrs=np.array([0.25]), seeds=np.int64(2)
    )
    assert (study.tasks[0].data, study.seeds) == (str(tmp_path / "photos"), (0, 1))
    assert [setting["lr"] for setting in study.grid] == [0.25]
    assert comparison_study("x", ["lora"], seeds=np.array([3, 1])).seeds == (3, 1)
    json.dumps(study.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"methods": []}, "--methods: got none"),
        ({"methods": ["linear_sgd"], "seeds": 1.5}, "--seeds: got 1.5, expected 1 or more"),
        ({"methods": ["linear_sgd", "linear_sgd"]}, "got 'linear_sgd' twice"),
        ({"methods": ["linear_sgd"], "seeds": 0}, "--seeds: got 0"),
        ({"methods": ["linear_sgd"], "method_args": {"lora": {}}}, "got arguments for 'lora'"),
    ],
)
def test_odd_comparisons(values: dict[str, Any], match: str) -> None:
    with pytest.raises(VituneError, match=match):
        comparison_study("demo:count", **values)


def test_compare_with_nothing_finished(tmp_path: Path, bench: Workbench) -> None:
    study = comparison_study(
        "demo:count?train=16&val=8&test=16", ["linear_sgd"], settings={"batch_size": 1000}, epochs=1
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

def work():
    from vitune.bench.study.execution import begin_worker

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


def test_each_worker_takes_the_next_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitune.bench.study.execution import take_gpu

    taken: list[int] = []
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    for num_gpus in (0, 1, 2):
        monkeypatch.setattr("torch.cuda.device_count", lambda num_gpus=num_gpus: num_gpus)
        for place in range(3):
            take_gpu(place)
    assert taken == [0, 1, 0]
