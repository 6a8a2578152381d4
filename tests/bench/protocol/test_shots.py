"""k images per class: drawn lists, what final runs are trained on, and the curve on the page."""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from study_parts import Invented

import vitune.cli._study as cli_study
from vitune.bench.launching import suite_study
from vitune.bench.study.cells import Cell
from vitune.bench.study.execution import InProcess
from vitune.bench.study.plan import Study, Task
from vitune.bench.study.protocol import Planner, run_study
from vitune.bench.study.workbench import Workbench
from vitune.bench.suites.shots import with_shots
from vitune.bench.suites.tiny_copies import write_fake
from vitune.bench.tables.shots_chart import shots_chart
from vitune.bench.tables.study_table import make_table
from vitune.cli import run
from vitune.data import open_source
from vitune.errors import DataError, VituneError

Make = Callable[..., Any]


@pytest.fixture
def birds(photos: Make) -> Path:
    return photos("birds", {"train": 8, "val": 6, "test": 3})  # type: ignore[no-any-return]


def rows_of(task: Task) -> list[tuple[str, str]]:
    with Path(task.data).open(newline="") as file:
        return [(row["path"], row["split"]) for row in csv.DictReader(file)]


def drawn(task: Task, split: str) -> set[str]:
    return {path for path, of in rows_of(task) if of == split}


def test_draws_are_nested_seeded_and_leave_the_test_split_whole(
    birds: Path, tmp_path: Path
) -> None:
    task = Task(name="birds", data=str(birds))
    tasks = with_shots([task], [1, 2, 4, 8], tmp_path)
    assert [(t.name, t.shots, t.refit, t.group) for t in tasks] == [
        (f"birds-{k}shot", k, False, None) for k in (1, 2, 4, 8)
    ]
    for small, large in pairwise(tasks):
        assert drawn(small, "train") < drawn(large, "train")
    for made in tasks:
        listed = open_source(made.data)
        assert made.shots is not None
        counts = {name: len(records) for name, records in listed.splits.items()}
        assert counts == {"train": 2 * made.shots, "val": 2 * min(4, made.shots), "test": 6}
        assert listed.classes == ("ant", "bee")
    again = with_shots([task], [4], tmp_path / "again")
    assert rows_of(again[0]) == rows_of(tasks[2])
    other = with_shots([task], [4], tmp_path / "other", seed=1)
    assert drawn(other[0], "train") != drawn(tasks[2], "train")


@pytest.mark.parametrize(
    ("shots", "splits", "match"),
    [
        ([0], {"train": 2, "test": 2}, "--shots: got 0"),
        ([2, 2], {"train": 2, "test": 2}, "--shots: got 2, expected different numbers"),
        ([3], {"train": 2, "test": 2}, "at most the 2 train images of class 'ant'"),
        ([1], {"train": 2, "val": 2}, "without a test split"),
    ],
)
def test_shots_that_cannot_be_drawn(
    photos: Make, tmp_path: Path, shots: list[int], splits: dict[str, int], match: str
) -> None:
    task = Task(name="t", data=str(photos("t", splits)))
    with pytest.raises(VituneError, match=match):
        with_shots([task], shots, tmp_path)
    with pytest.raises(VituneError, match=r"whose images are not files"):
        with_shots([Task(name="c", data="demo:count")], [1], tmp_path)


def sizes_trained_on(study: Study, tmp_path: Path) -> list[int]:
    outcome = run_study(study, tmp_path, executor=InProcess())
    assert not outcome.failures
    return [result.sizes["train"] for result in outcome.results]


def test_final_runs_see_the_shots_and_nothing_else(birds: Path, tmp_path: Path) -> None:
    """With validation images beside them a refit would train on more than k per class."""
    common: dict[str, Any] = {"epochs": 1, "seeds": 1, "settings": {"batch_size": 2}}
    study = suite_study(str(birds), ["linear_sgd"], tmp_path / "a", shots=[2, 4], lrs=[1e-3, 1e-2],
                        retention=False, **common)  # fmt: skip
    assert sizes_trained_on(study, tmp_path / "a") == [4, 8]


def test_shots_without_validation_images_are_held_out_and_given_back(
    photos: Make, tmp_path: Path
) -> None:
    root = photos("few", {"train": 4, "test": 2})
    common: dict[str, Any] = {"epochs": 1, "seeds": 1, "settings": {"batch_size": 2},
                              "retention": False}  # fmt: skip
    study = suite_study(str(root), ["linear_sgd"], tmp_path / "a", shots=[2, 4], lrs=[1e-3, 1e-2],
                        **common)  # fmt: skip
    outcome = run_study(study, tmp_path / "a", executor=InProcess())
    assert {(r.task, r.sizes["train"]) for r in outcome.selection} == {
        ("few-2shot", 3), ("few-4shot", 6),
    }  # fmt: skip
    assert [r.sizes["train"] for r in outcome.results] == [4, 8]
    one = suite_study(str(root), ["linear_sgd"], tmp_path / "b", shots=[1], tune=False, **common)
    assert sizes_trained_on(one, tmp_path / "b") == [2]
    tuned = suite_study(str(root), ["linear_sgd"], tmp_path / "c", shots=[1], lrs=[1e-3, 1e-2],
                        **common)  # fmt: skip
    with pytest.raises(DataError, match=r"got one image of class 'ant'"):
        run_study(tuned, tmp_path / "c", executor=Invented())


def test_a_default_batch_fits_each_draw_and_one_asked_for_is_refused_there_alone(
    birds: Path, tmp_path: Path
) -> None:
    common: dict[str, Any] = {"shots": [1, 8], "tune": False, "epochs": 1, "seeds": 1,
                              "retention": False}  # fmt: skip
    study = suite_study(str(birds), ["linear_sgd"], tmp_path / "a", **common)
    outcome = run_study(study, tmp_path / "a", executor=InProcess())
    assert [result.error for result in outcome.results] == [None, None]
    assert [result.config["batch_size"] for result in outcome.results] == [2, 16]
    again = run_study(study, tmp_path / "a", executor=InProcess())
    assert again.num_reused == 2
    asked = suite_study(str(birds), ["linear_sgd"], tmp_path / "b", settings={"batch_size": 4},
                        **common)  # fmt: skip
    few, enough = run_study(asked, tmp_path / "b", executor=InProcess()).results
    assert "--batch-size: got 4, expected at most the 2 training images" in (few.error or "")
    assert enough.status == "done" and enough.config["batch_size"] == 4


def test_the_few_shot_suite_takes_its_own_lists(tmp_path: Path) -> None:
    root = tmp_path / "fake"
    write_fake(root, "fewshot", side=16)
    study = suite_study("fewshot", ["linear_sgd"], tmp_path / "out", root=root, shots=[2, 4],
                        lrs=[1e-3], epochs=1)  # fmt: skip
    names = [task.name for task in study.tasks]
    assert names[:2] == [name.replace("-4shot", "-2shot") for name in names[2:]]
    assert [task.group for task in study.tasks] == ["2-shot"] * 2 + ["4-shot"] * 2
    assert {task.refit for task in study.tasks} == {False}
    planner = Planner(study, Workbench())
    from vitune.bench.study.protocol import choose

    variant, task = study.variants[0], study.tasks[0]
    choice = choose(study, variant, task, [])
    assert choice is not None
    cell = planner.final_cells(variant, task, choice)[0]
    listed = open_source(task.data)
    assert cell.config.refit is ("val" not in listed.splits)
    alone = suite_study("fewshot", ["linear_sgd"], tmp_path / "out", root=root, shots=[2, 4],
                        only=["food101"])  # fmt: skip
    assert [(task.group, task.shots) for task in alone.tasks] == [(None, 2), (None, 4)]
    with pytest.raises(DataError, match=r"without lists of 16 shots"):
        suite_study("fewshot", ["linear_sgd"], tmp_path / "out", root=root)


def test_the_curve_on_the_page(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def accuracy(cell: Cell) -> float:
        return 0.4 + 0.05 * int(cell.task[6:-4]) + 0.1 * (cell.config.method == "lora")

    executor = Invented(accuracy=accuracy)
    monkeypatch.setattr(cli_study, "new_executor", lambda *_: executor)
    out = tmp_path / "out"
    words = ["bench", "run", "--suite", str(birds), "--methods", "linear_sgd,lora", "--shots",
             "1,2,4,8", "--lrs", "1e-3", "--epochs", "1", "--batch-size", "2", "--seeds", "2",
             "--method-arg", "lora:r=2", "--out", str(out)]  # fmt: skip
    assert run(words) == 0
    page = (out / "results.html").read_text()
    assert "Accuracy against training images per class" in page
    assert page.count('class="curve line-main"') == page.count('class="curve line-quiet"') == 1
    assert "lora, 8 images per class:" in page and "linear_sgd, 1 image per class:" in page
    study = Study.read(out / "study.yaml")
    arguments = {v.label: v.method_args for v in study.variants}
    assert arguments == {"linear_sgd": {}, "lora": {"r": "2"}}
    capsys.readouterr()
    assert run([*words[:-4], "--method-arg", "rank=2", "--out", str(out)]) == 2
    assert "--method-arg: got 'rank'" in capsys.readouterr().err
    assert run([*words[:4], "--methods", "linear_sgd", "--shots", "two", "--out", str(out)]) == 2
    assert "--shots: got 'two', expected whole numbers" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--shots", "1"], ["--method-arg", "r=2"]])
def test_presets_take_neither(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    words = ["bench", "run", "--preset", "rlrr-vtab1k", "--out", str(tmp_path), *option]
    assert run(words) == 2
    assert f"{option[0]}: got it with --preset" in capsys.readouterr().err


def test_a_curve_is_a_mean_over_data_sets(result: Make) -> None:
    shots = {f"{name}-{k}shot": k for k in (1, 4) for name in ("a", "b")}
    results = [
        result("lora", task, 0.2 * k + 0.1 * task.startswith("a") + 0.01 * seed, seed)
        for task, k in shots.items()
        for seed in (0, 1)
    ]
    gone = [result("linear_sgd", task, 0.3) for task in ("a-1shot", "b-1shot", "a-4shot")]
    chart = shots_chart(make_table([*results, *gone]), shots)
    assert chart is not None
    lora, linear_sgd = chart.courses
    assert [spot.title for spot in lora.spots] == [
        "lora, 1 image per class: 25.50\xa0% ± 0.71\xa0%",
        "lora, 4 images per class: 85.50\xa0% ± 0.71\xa0%",
    ]
    assert len(linear_sgd.spots) == 1 and lora.best and not linear_sgd.best
    assert lora.spots[1].y < lora.spots[0].y and lora.spots[1].x > lora.spots[0].x
    assert abs(lora.label_y - linear_sgd.label_y) >= 15
    assert [tick.label for tick in chart.x_ticks] == ["1", "4"]
    assert shots_chart(make_table(results), {"a-1shot": 1}) is None
    assert shots_chart(make_table(results), {}) is None


def test_a_dry_run_of_one_shot_needs_no_image_to_hold_out(photos: Make, tmp_path: Path) -> None:
    from vitune.bench.cost import estimate

    root = photos("few", {"train": 4, "test": 2})
    study = suite_study(str(root), ["linear_sgd"], tmp_path, shots=[1, 2], tune=False, epochs=1,
                        seeds=1, settings={"batch_size": 2}, retention=False)  # fmt: skip
    found = estimate(study)
    assert [row.task for row in found] == ["few-1shot", "few-2shot"]
    assert [row.num_cells for row in found] == [1, 1] and found[0].hours < found[1].hours
