"""Runs without an accuracy: counted, ranked last, never out of sight, and in the exit code."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from study_parts import Invented, peak

import vitune.cli._study as cli_study
from vitune.bench.comparing import compare, comparison_study
from vitune.bench.study.cells import Cell, CellResult
from vitune.bench.study.plan import Study
from vitune.bench.study.protocol import read_results, read_unfinished, run_study
from vitune.bench.study.workbench import Workbench
from vitune.bench.tables.study_page import write_study_page
from vitune.bench.tables.study_table import Table, make_table
from vitune.bench.tables.table_formats import as_grid, formatted
from vitune.cli import run
from vitune.errors import VituneError

Make = Callable[..., Any]
TASKS = ("t", "u", "v")


def results_of(result: Make, label: str, top1: float, lost: Any = ()) -> list[CellResult]:
    """Three seeds on three tasks; `lost` names (task, seed) that diverged."""
    return [
        result(label, task, status="diverged", scores=None, error="loss: got nan", seed=seed)
        if (task, seed) in lost
        else result(label, task, top1, seed)
        for task in TASKS
        for seed in (0, 1, 2)
    ]


def table_of(result: Make, lost: Any) -> Table:
    high = results_of(result, "high", 0.9, lost)
    return make_table(high + results_of(result, "low", 0.5))


def test_a_survivors_mean_never_ranks_first(result: Make) -> None:
    table = table_of(result, {("t", 1), ("t", 2)})
    high, low = table.rows
    assert high.figures["u"].mean == 0.9 and "t" not in high.figures
    assert high.survivors["t"].num_seeds == 1 and high.lost["t"].num_diverged == 2
    assert high.mean_tasks is None and low.mean_tasks == pytest.approx(0.5)
    assert (high.rank, low.rank) == (pytest.approx(4 / 3), pytest.approx(5 / 3))
    grid = as_grid(table)
    assert grid.lines[0][2] == "90.0 (1 of 3)" and grid.lines[1][2] == "50.0 ± 0.0"
    assert any("2 runs diverged: their loss became non-finite. high on t (2)" in note
               for note in table.notes)  # fmt: skip
    assert any("high has no result for some runs on t: no mean over tasks" in note
               for note in table.notes)  # fmt: skip
    (found,) = table.differences
    assert found.num_tasks == 2  # the survivor enters no difference


def test_a_method_that_diverged_everywhere_keeps_its_row(result: Make, tmp_path: Path) -> None:
    everywhere = {(task, seed) for task in TASKS for seed in (0, 1, 2)}
    table = table_of(result, everywhere)
    high, low = table.rows
    assert (high.label, high.figures, high.mean_tasks) == ("high", {}, None)
    assert (high.rank, low.rank) == (2.0, 1.0) and not table.differences
    assert [line[2] for line in as_grid(table).lines] == ["3 diverged", "50.0 ± 0.0"]
    rows = list(csv.DictReader(io.StringIO(formatted(table, "csv"))))
    lost = [row for row in rows if row["label"] == "high"]
    assert [(row["mean"], row["num_seeds"], row["num_diverged"]) for row in lost] == [
        ("", "0", "3")
    ] * 3
    for name in ("markdown", "latex"):
        assert "3 diverged" in formatted(table, name)
    page = write_study_page(table, tmp_path / "page.html", heading="Lost").read_text()
    assert "3 diverged" in page and "high on t (3)" in page


def test_ranks_of_methods_that_lose_runs(result: Make) -> None:
    """Whoever loses a smaller share is ahead; among equals the ranks are shared."""
    one, two = {("t", 0)}, {("t", 0), ("t", 1)}
    results = [
        *results_of(result, "a", 0.99, two),
        *results_of(result, "b", 0.7, one),
        *results_of(result, "c", 0.1),
        *results_of(result, "d", 0.9, one),
    ]
    only = make_table([r for r in results if r.task == "t"])
    assert {row.label: row.rank for row in only.rows} == {"a": 4.0, "b": 2.5, "c": 1.0, "d": 2.5}


def test_the_critical_difference_counts_lost_runs_as_last(result: Make) -> None:
    tasks = [f"t{number}" for number in range(6)]
    results = [
        result(label, task, top1, status="diverged", scores=None, error="nan")
        if label == "a" and task == "t0"
        else result(label, task, top1)
        for label, top1 in (("a", 0.9), ("b", 0.8), ("c", 0.7))
        for task in tasks
    ]
    table = make_table(results)
    assert table.ranking is not None and table.ranking.num_tasks == 6
    assert table.ranking.ranks["a"] == pytest.approx((5 * 1 + 3) / 6)


def test_nothing_but_lost_runs_is_an_error_that_counts_them(result: Make) -> None:
    lost = results_of(result, "a", 0.5, {(task, seed) for task in TASKS for seed in (0, 1, 2)})
    with pytest.raises(VituneError, match=r"no finished result.*9 runs diverged.*a on t \(3\)"):
        make_table(lost)


def test_as_published_rows_keep_lost_runs(result: Make) -> None:
    seen = {"test_max": 0.6, "test_last": 0.5, "best_epoch": 1, "test_by_epoch": [0.6]}
    done = [result(protocol="as-published", published=seen, seed=seed) for seed in (0, 1)]
    gone = result(protocol="as-published", status="diverged", scores=None, error="nan", seed=2)
    table = make_table([*done, gone])
    assert [row.lost["t"].num_diverged for row in table.rows] == [1, 1]
    assert len(table.rows) == 2


def test_the_best_test_epoch_has_no_likelihood_of_another_epoch(result: Make) -> None:
    seen = {"test_max": 0.6, "test_last": 0.5, "best_epoch": 1, "test_by_epoch": [0.6, 0.5]}
    kept = {"cka_last": 0.9, "cka_mean": 0.9}
    table = make_table([result(protocol="as-published", published=seen, retention=kept)])
    best, last = table.rows
    assert (best.nll, best.ece, best.drift) == (None, None, None)
    assert (last.nll, last.ece) == (1.0, 0.1) and last.drift == pytest.approx(0.1)
    assert [line[-2:] for line in as_grid(table).lines] == [("–", "–"), ("1.000", "0.100")]


def diverging(cell: Cell) -> float | None:
    """LoRA diverges in every final run of an odd seed; bitfit at every setting."""
    if cell.config.method == "bitfit":
        return None
    if cell.config.method == "lora" and cell.stage == "final" and cell.config.seed % 2:
        return None
    return peak(cell)


@pytest.fixture
def three(tiny_study: Make) -> Study:
    """A study of three methods with a grid."""
    variants = [{"label": name, "method": name} for name in ("linear_sgd", "lora", "bitfit")]
    return tiny_study(  # type: ignore[no-any-return]
        variants=variants, grid=[{"lr": 1e-3}, {"lr": 1e-2}], seeds=[0, 1, 2]
    )


def test_a_method_without_a_setting_is_in_the_table(
    three: Study, bench: Workbench, tmp_path: Path
) -> None:
    outcome = run_study(three, tmp_path, executor=Invented(bench, diverging))
    assert len(outcome.results) == 9 and not outcome.failures
    assert len(outcome.diverged) == 1 + 3
    for results in (outcome.results, read_results(tmp_path)):
        rows = {row.label: row for row in make_table(results).rows}
        assert list(rows) == ["linear_sgd", "lora", "bitfit"]
        assert rows["lora"].lost["count"].num_diverged == 1
        assert rows["lora"].survivors["count"].num_seeds == 2
        assert rows["bitfit"].lost["count"].num_diverged == 3
        assert "no setting of stage 1 finished" in " ".join(make_table(results).notes)
    assert read_unfinished(tmp_path) == []
    healed = run_study(three, tmp_path, executor=Invented(bench))
    assert [r.status for r in healed.results if r.label == "bitfit"] == ["diverged"] * 3
    fresh = run_study(three, tmp_path / "fresh", executor=Invented(bench))
    assert {r.status for r in fresh.results} == {"done"}


def test_a_comparison_with_lost_runs(tmp_path: Path, bench: Workbench) -> None:
    study = comparison_study(
        "demo:count?train=16&val=8&test=16", ["linear_sgd", "lora", "bitfit"], epochs=1, seeds=3,
        lrs=[1e-3, 1e-2], settings={"batch_size": 8},
    )  # fmt: skip
    found = compare(study, tmp_path, executor=Invented(bench, diverging))
    text = found.page.read_text()
    assert "1 of 3 runs lost" in text and "3 of 3 runs lost" in text
    assert text.index("Linear probe") < text.index("1 of 3 runs lost")
    with pytest.raises(VituneError, match=r"got no finished run.*no setting of stage 1"):
        compare(study, tmp_path / "none", executor=Invented(bench, lambda cell: None))


@pytest.mark.parametrize(
    ("accuracy", "code", "told"),
    [
        (peak, 0, ""),
        (diverging, 1, "1 run diverged and will not be tried again"),
        (lambda cell: None if cell.stage == "select" and cell.config.lr > 5e-3 else 0.5, 0, ""),
    ],
)
def test_the_exit_code_tells_of_lost_runs(
    tmp_path: Path,
    bench: Workbench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    accuracy: Any,
    code: int,
    told: str,
) -> None:
    """A rate that diverges in stage 1 is no loss: the grid is there to find that out."""
    monkeypatch.setattr(cli_study, "new_executor", lambda *_: Invented(bench, accuracy))
    words = ["--epochs", "1", "--batch-size", "8", "--lrs", "1e-3,1e-2", "--seeds", "2"]
    data = "demo:count?train=16&val=8&test=16"
    for verb, out in (
        (["compare", "--data", data, "--methods", "linear_sgd,lora"], "compare"),
        (["bench", "run", "--suite", data, "--methods", "linear_sgd,lora"], "run"),
    ):
        assert run([*verb, *words, "--out", str(tmp_path / out)]) == code
        assert told in capsys.readouterr().out


def test_runs_that_broke_down_are_counted_and_tried_again(
    tmp_path: Path, bench: Workbench, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["compare", "--data", "demo:count?train=16&val=8&test=16", "--methods",
             "linear_sgd,bitfit", "--epochs", "1", "--seeds", "1", "--batch-size", "8",
             "--out", str(tmp_path)]  # fmt: skip
    from vitune.bench.study import running

    run_cell = running.run_cell

    def broken(cell: Cell, *rest: Any, **options: Any) -> CellResult:
        if cell.config.method == "bitfit":
            return running.blank_result(cell, "failed", error="RuntimeError: boom")
        return run_cell(cell, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(running, "run_cell", broken)
        assert run(words) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 run failed; run the same command to try again" in printed and "1 failed" in printed
    assert run(words) == 0
