"""A study's folder makes a table at any moment, and holds one study."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from study_parts import Bomb, Invented, KilledError

from vitune.bench.study.execution import InProcess
from vitune.bench.study.journal import JOURNAL, Journal, read_choices, read_study, row_of
from vitune.bench.study.plan import Study
from vitune.bench.study.protocol import Planner, read_results, read_unfinished, run_study
from vitune.bench.study.store import Store
from vitune.bench.study.workbench import Workbench
from vitune.bench.tables.study_table import make_table
from vitune.cli import run
from vitune.errors import VituneError

Make = Callable[..., Study]
NO_TEST = "demo:count?train=16&val=8&test=0"
TWO_TASKS = [
    {"name": "count", "data": "demo:count?train=16&val=8&test=16"},
    {"name": "distance", "data": "demo:distance?train=16&val=8&test=16"},
]
GRID = [{"lr": 1e-3}, {"lr": 1e-2}]


class AllAtOnce(Invented):
    """Tasks go through the stages together, as with several jobs."""

    def waves(self, tasks: Any) -> Any:
        return [tasks]


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_without_a_test_split_no_seed_is_lost(
    tiny_study: Make, bench: Workbench, tmp_path: Path, seeds: list[int]
) -> None:
    """Stage 1 and the final run of a seed train alike here; they are two cells all the same."""
    study = tiny_study(tasks=[{"name": "count", "data": NO_TEST}], grid=GRID, seeds=seeds)
    outcome = run_study(study, tmp_path, executor=InProcess(bench))
    assert [r.seed for r in outcome.results if r.scores is not None] == seeds
    table = make_table(read_results(tmp_path), unfinished=read_unfinished(tmp_path))
    assert table.rows[0].figures["count"].seeds == tuple(seeds)


def test_compare_and_bench_study_report_every_seed_on_validation(
    tiny_study: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    out = tmp_path / "compare"
    words = ["compare", "--data", NO_TEST, "--methods", "linear_sgd", "--epochs", "1",
             "--batch-size", "8", "--lrs", "1e-3,1e-2"]  # fmt: skip
    assert run([*words, "--seeds", "1", "--out", str(out)]) == 0
    assert "(1 seed)" in " ".join(capsys.readouterr().out.split())
    assert run([*words, "--seeds", "3", "--out", str(out)]) == 0
    assert "(1 seed)" not in capsys.readouterr().out
    assert [r.seed for r in read_results(out)] == [0, 1, 2]
    study = tiny_study(tasks=[{"name": "c", "data": NO_TEST}], grid=GRID, seeds=[0, 1, 2])
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    assert run(["bench", "study", str(file), "--out", str(tmp_path / "study")]) == 0
    assert [r.seed for r in read_results(tmp_path / "study")] == [0, 1, 2]


@pytest.mark.parametrize("executor", [Invented, AllAtOnce])
@pytest.mark.parametrize("after", [0, 1, 4, 5, 7, 9, 10, 11])
def test_a_study_killed_at_any_point_has_a_table_that_says_what_is_missing(
    tiny_study: Make, bench: Workbench, tmp_path: Path, after: int, executor: type[Invented]
) -> None:
    study = tiny_study(tasks=TWO_TASKS, grid=GRID, seeds=[0, 1, 2, 3])
    with pytest.raises(KilledError):
        run_study(study, tmp_path, executor=executor(bench), watcher=Bomb(after))
    results, unfinished = read_results(tmp_path), read_unfinished(tmp_path)
    there = {(r.label, r.task, r.seed) for r in results}
    finals = [r for r in Store(tmp_path).results() if r.stage == "final"]
    assert len(results) == len(finals)  # every final cell that was written is shown
    assert len(there) + len(unfinished) == 8 and not there & set(unfinished)
    if not results:
        with pytest.raises(VituneError, match=r"got no finished result.*8 runs are still to come"):
            make_table(results, unfinished=unfinished)
    else:
        table = make_table(results, unfinished=unfinished)
        text = " ".join(table.notes)
        assert (f"{len(unfinished)} run" in text and "still to come" in text) == bool(unfinished)
        assert all(label in text for label, _, _ in unfinished)
    again = run_study(study, tmp_path, executor=executor(bench))
    assert len(read_results(tmp_path)) == 8 and not read_unfinished(tmp_path)
    assert read_choices(tmp_path) == list(again.choices)


def test_a_table_of_a_part_counts_its_seeds(
    tiny_study: Make, bench: Workbench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny_study(tasks=TWO_TASKS, seeds=[0, 1, 2, 3])
    with pytest.raises(KilledError):
        run_study(study, tmp_path, executor=Invented(bench), watcher=Bomb(5))
    table = make_table(read_results(tmp_path), unfinished=read_unfinished(tmp_path))
    (row,) = table.rows
    assert (row.lost["distance"].num_pending, row.figures["distance"].num_seeds) == (2, 2)
    assert run(["bench", "table", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "(2 of 4)" in printed and "linear_sgd on distance, seed 2 3" in printed
    before = tmp_path / "none"
    before.mkdir()
    (before / "study.yaml").write_bytes((tmp_path / "study.yaml").read_bytes())
    assert run(["bench", "table", str(before)]) == 2
    assert "8 runs are still to come" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": 2}, "epochs is 1 there and 2 here"),
        ({"backbone": "vit_tiny_patch16_224"}, "backbone is 'vitune/vit_micro"),
        ({"settings": {"batch_size": 4}}, "settings is"),
        ({"protocol": "as-published"}, "protocol is 'honest'"),
        (
            {"variants": [{"label": "linear_sgd", "method": "bitfit"}]},
            "linear_sgd: method is 'linear_sgd' there and 'bitfit' here",
        ),
        (
            {"tasks": [{"name": "count", "data": TWO_TASKS[0]["data"], "settings": {"lr": 1.0}}]},
            "count: settings is",
        ),
        ({"tasks": [TWO_TASKS[1]]}, "with no method and task in common"),
    ],
)
def test_another_study_in_the_same_folder_is_refused(
    tiny_study: Make, bench: Workbench, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    study = tiny_study()
    run_study(study, tmp_path, executor=Invented(bench))
    with pytest.raises(VituneError, match=f"holds another study \\({told}"):
        run_study(tiny_study(**changes), tmp_path, executor=Invented(bench))
    assert read_study(tmp_path) == study and len(read_results(tmp_path)) == 1


def test_a_study_that_never_finished_a_run_may_be_replaced(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    class Refuse(Invented):
        def run(self, cells: Any, store: Any) -> Any:
            raise KilledError
            yield

    with pytest.raises(KilledError):
        run_study(tiny_study(epochs=2), tmp_path, executor=Refuse(bench))
    run_study(tiny_study(), tmp_path, executor=Invented(bench))
    assert [r.config["epochs"] for r in read_results(tmp_path)] == [1]


def test_more_seeds_methods_and_tasks_go_on_in_the_same_folder(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    run_study(tiny_study(seeds=[0]), tmp_path, executor=Invented(bench))
    variants = [{"label": name, "method": name} for name in ("linear_sgd", "bitfit")]
    more = tiny_study(seeds=[0, 1], variants=variants, tasks=TWO_TASKS, name="more")
    executor = Invented(bench)
    outcome = run_study(more, tmp_path, executor=executor)
    assert (outcome.num_reused, executor.num_run) == (1, 7)
    assert len(read_results(tmp_path)) == 8
    fewer = run_study(tiny_study(seeds=[1]), tmp_path, executor=Invented(bench))
    assert read_results(tmp_path) == list(fewer.results)


def test_another_grid_hides_what_the_old_one_chose(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    """Until the new grid has chosen, its table is empty: the old choice is another study's."""
    run_study(tiny_study(grid=[{"lr": 1e-4}, {"lr": 1e-3}]), tmp_path, executor=Invented(bench))
    assert read_results(tmp_path)[0].config["lr"] == 1e-3
    wider = tiny_study(grid=[{"lr": 1e-4}, {"lr": 1e-3}, {"lr": 1e-2}])
    with pytest.raises(KilledError):
        run_study(wider, tmp_path, executor=Invented(bench), watcher=Bomb(2))
    assert read_results(tmp_path) == [] and read_choices(tmp_path) == []
    assert read_unfinished(tmp_path) == [("linear_sgd", "count", 0)]
    run_study(wider, tmp_path, executor=Invented(bench))
    assert read_results(tmp_path)[0].config["lr"] == 1e-2
    assert [choice.setting for choice in read_choices(tmp_path)] == [{"lr": 1e-2}]


def test_torn_and_foreign_lines_are_passed_over(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    study = tiny_study(seeds=[0, 1])
    run_study(study, tmp_path, executor=Invented(bench))
    file = tmp_path / JOURNAL
    whole = file.read_text()
    last = whole.strip().splitlines()[-1]
    file.write_text(whole + 'null\n{"row": 1}\n"text"\n\xff\n' + last[: len(last) // 2])
    assert len(read_results(tmp_path)) == 2
    more = tiny_study(seeds=[0, 1, 2])
    run_study(more, tmp_path, executor=Invented(bench))
    assert len(read_results(tmp_path)) == 3


def test_a_study_that_goes_on_adds_no_line_twice(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    study = tiny_study(seeds=[0, 1], grid=GRID)
    run_study(study, tmp_path, executor=Invented(bench))
    before = (tmp_path / JOURNAL).read_bytes()
    run_study(study, tmp_path, executor=Invented(bench))
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_two_drivers_write_one_journal(tiny_study: Make, bench: Workbench, tmp_path: Path) -> None:
    study = tiny_study(tasks=TWO_TASKS, seeds=list(range(6)))
    planner = Planner(study, bench)
    cells = [
        cell
        for task in study.tasks
        for cell in planner.final_cells(study.variants[0], task, _choice(study))
    ]
    journals = [Journal.begin(tmp_path, study) for _ in range(2)]
    drivers = [
        threading.Thread(target=lambda j=j: [j.planned([cell]) for cell in cells]) for j in journals
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    lines = [json.loads(line) for line in (tmp_path / JOURNAL).read_text().split("\n") if line]
    assert {line["address"] for line in lines} == {cell.address for cell in cells}
    assert len(lines) == 2 * len(cells)


def _choice(study: Study) -> Any:
    from vitune.bench.study.protocol import choose

    choice = choose(study, study.variants[0], study.tasks[0], [])
    assert choice is not None
    return choice


def test_a_full_disk_delays_the_journal(
    tiny_study: Make, bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitune.bench.study.journal as module

    study = tiny_study(seeds=[0, 1])
    journal = Journal.begin(tmp_path, study)
    first, second = Planner(study, bench).final_cells(
        study.variants[0], study.tasks[0], _choice(study)
    )

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "write", full)
        journal.planned([first])
    assert len(journal.waiting) == 1
    journal.planned([second])
    assert journal.waiting == []
    lines = [json.loads(line) for line in (tmp_path / JOURNAL).read_text().split("\n") if line]
    assert [line["seed"] for line in lines] == [0, 1]


def test_a_field_that_studies_gain_later_keeps_the_rows(tiny_study: Make) -> None:
    study = tiny_study()
    row = row_of(study, study.variants[0], study.tasks[0])
    assert row == row_of(Study.make({**study.model_dump(), "retention": False}),
                         study.variants[0], study.tasks[0])  # fmt: skip
    other = Study.make({**study.model_dump(), "retention": True})
    assert row != row_of(other, study.variants[0], study.tasks[0])
    for change in ({"seeds": [4]}, {"name": "x"}, {"keep": ["adapters"]}, {"allow_overlap": True}):
        free = Study.make({**study.model_dump(), **change})
        assert row == row_of(free, study.variants[0], study.tasks[0])


def test_a_folder_of_an_older_vitune_can_still_be_shown(
    tiny_study: Make, bench: Workbench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    study = tiny_study(seeds=[0, 1], grid=GRID)
    outcome = run_study(study, tmp_path, executor=Invented(bench))
    (tmp_path / JOURNAL).unlink()
    new = {"format", "identity", "weight_files", "source", "unshared", "sha256"}
    results = []
    for result in outcome.results:
        file = Store(tmp_path).file(result.address)
        values = {k: v for k, v in json.loads(file.read_text()).items() if k not in new}
        file.write_text(json.dumps({"format": 1, **values}))
        names = ("label", "task", "group", "val", "address")
        results.append({name: getattr(result, name) for name in names})
    choices = [vars(choice) for choice in outcome.choices]
    manifest = {"results": results, "choices": choices}
    (tmp_path / "study.json").write_text(json.dumps(manifest))
    old = {k: v for k, v in study.model_dump(mode="json").items()
           if k not in ("keep", "allow_overlap")}  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(old))
    assert [r.format for r in read_results(tmp_path)] == [1, 1]
    assert read_choices(tmp_path) == list(outcome.choices)
    assert run(["bench", "table", str(tmp_path)]) == 0
    assert "2 runs of an older vitune" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(VituneError, match=r"damaged file"):
        read_results(tmp_path)


def test_a_study_of_a_newer_vitune_is_not_written_over(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    run_study(tiny_study(), tmp_path, executor=Invented(bench))
    file = tmp_path / "study.yaml"
    file.write_text(file.read_text() + "from_the_future: 1\n")
    with pytest.raises(VituneError, match=r"that this version of vitune cannot read"):
        run_study(tiny_study(), tmp_path, executor=Invented(bench))
