"""Means, spreads, ranks and tests; what may not stand in one table; every output format."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import vitune.cli._study as module
from vitune.bench.beside_honest import run_both
from vitune.bench.cells import CellResult
from vitune.bench.defaults import choose_defaults, default_against_tuned, markdown_of
from vitune.bench.formats import as_grid, difference_text, formatted, label_of
from vitune.bench.page import inflation, write_study_page
from vitune.bench.protocol import Choice
from vitune.bench.published import pretraining_of, published_row, published_rows, suite_of
from vitune.bench.statistics import average_ranks, difference, wilcoxon
from vitune.bench.table import make_table
from vitune.errors import VituneError

Make = Callable[..., CellResult]

VTAB = ("cifar", "caltech101", "dtd", "svhn", "eurosat", "resisc45", "kitti", "dmlab")


def vtab_results(result: Make, label: str, shift: float, **changes: Any) -> list[CellResult]:
    config = {"method": label, "backbone": "vit_base_patch16_224.orig_in21k", "lr": 0.1}
    return [
        result(
            label,
            task,
            0.5 + 0.01 * place + shift + 0.01 * seed,
            seed,
            config={**config, "seed": seed},
            group="natural" if place < 4 else "other",
            **changes,
        )
        for place, task in enumerate(VTAB)
        for seed in (0, 1)
    ]


def test_means_over_seeds_tasks_and_groups(result: Make) -> None:
    table = make_table(vtab_results(result, "rlrr", 0.1) + vtab_results(result, "ssf", 0.0))
    first, second = table.rows
    figure = first.figures["cifar"]
    assert figure.mean == pytest.approx(0.605) and figure.num_seeds == 2
    assert figure.std == pytest.approx(np.std([0.60, 0.61], ddof=1))
    assert first.group_means["natural"] == pytest.approx(0.605 + 0.015)
    assert first.mean_tasks == pytest.approx(0.605 + 0.035)
    assert first.mean_groups == pytest.approx(0.605 + 0.035)
    assert first.spread == pytest.approx(np.std([0, 0.01], ddof=1))
    assert (first.rank, second.rank) == (1.0, 2.0)
    assert (first.num_parameters, first.seconds, first.peak_mib) == (6, 2.0, 10.0)
    (found,) = table.differences
    assert found.mean == pytest.approx(0.1) and found.resampled == "tasks"
    assert found.p_value == pytest.approx(2 / 2**8)


def test_published_figures_stand_beside(result: Make) -> None:
    table = make_table(vtab_results(result, "rlrr", 0.0))
    (row,) = table.rows
    assert table.suite == "vtab1k" and row.published is not None
    assert row.published.accuracies["cifar"] == pytest.approx(0.756)
    gaps = [row.figures[t].mean - row.published.accuracies[t] for t in VTAB]
    assert row.gap == pytest.approx(np.mean(gaps))
    lines = as_grid(table).lines
    assert [line[0].strip() for line in lines] == ["rlrr", "published (in21k)", "difference"]
    assert lines[1][2] == "75.6" and lines[2][2] == f"{100 * gaps[0]:+.1f}"
    assert all(len(line) == len(as_grid(table).headings) for line in lines)


def test_groups_that_lack_a_task_have_no_mean(result: Make) -> None:
    results = vtab_results(result, "rlrr", 0.0) + vtab_results(result, "ssf", 0.0)
    table = make_table([r for r in results if (r.label, r.task) != ("ssf", "dtd")])
    row = table.rows[1]
    assert row.group_means["natural"] is None and row.mean_tasks is None
    assert row.group_means["other"] is not None and row.mean_groups is None
    assert any("ssf has no result on dtd" in note for note in table.notes)
    assert "–" in formatted(table, "markdown")


def test_a_single_seed_is_said_everywhere(result: Make) -> None:
    table = make_table([result(top1=0.5), result("b", top1=0.7)])
    assert table.rows[0].figures["t"].std is None
    assert any(note.startswith("One seed only: a, b") for note in table.notes)
    for name in ("markdown", "latex"):
        assert "50.0 (1 seed)" in formatted(table, name)
    (line, *_) = csv.DictReader(io.StringIO(formatted(table, "csv")))
    assert (line["num_seeds"], line["std"], float(line["mean"])) == ("1", "", 0.5)


def test_missing_tasks_and_failures_are_named(result: Make) -> None:
    failed = result("a", "u", status="failed", scores=None, error="OSError: full")
    table = make_table([result(), failed], missing=["svhn", "dtd"])
    assert any("lacks 2 tasks" in note and "svhn, dtd" in note for note in table.notes)
    assert any("1 runs did not finish" in note and "OSError: full" in note for note in table.notes)


def test_validation_figures_are_labelled(result: Make) -> None:
    table = make_table([result(scored_on="val")])
    assert label_of(table.rows[0]) == "a (validation)"
    assert any("Validation accuracy" in note for note in table.notes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"config": {"method": "a", "backbone": "tiny", "lr": 0.2, "seed": 1}}, "lr: 0.1 and 0.2"),
        ({"split_hashes": {"train": "9", "test": "2"}}, "two different images"),
        ({"fingerprint": "v1-9"}, "two different backbone weights"),
    ],
)
def test_two_configurations_under_one_name_are_refused(
    result: Make, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(VituneError, match=match):
        make_table([result(), result(seed=1, **changes)])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"config": {"method": "b", "backbone": "large", "seed": 0}}, "backbones"),
        ({"protocol": "as-published"}, "protocols"),
        ({"scored_on": "val"}, "reported splits"),
    ],
)
def test_mixtures_are_refused_or_split(result: Make, changes: dict[str, Any], what: str) -> None:
    both = [result(), result("b", **changes)]
    with pytest.raises(VituneError, match=f"table: got {what}"):
        make_table(both)
    table = make_table(both, split_columns=True)
    assert len(table.rows) == 2 and not table.differences


def test_nothing_finished_is_an_error(result: Make) -> None:
    with pytest.raises(VituneError, match=r"got no finished result"):
        make_table([result(stage="select")])


def test_as_published_gives_two_rows_and_the_inflation(
    result: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {"test_max": 0.6, "test_last": 0.5, "best_epoch": 3, "test_by_epoch": [0.6, 0.5]}
    table = make_table(
        [result(), result(protocol="as-published", published=seen)], split_columns=True
    )
    labels = [label_of(row) for row in table.rows]
    assert labels == ["a", "a [as-published: best test epoch]", "a [as-published: last epoch]"]
    paper = io.StringIO()
    monkeypatch.setattr(module, "console", Console(width=100, file=paper))
    module.print_table(table)
    assert "[as-published:" in paper.getvalue() and "mean" not in as_grid(table).headings
    ((label, best, last),) = inflation(table)
    assert (label, best, last) == ("a", 0.6, 0.5)
    page = write_study_page(table, tmp_path / "page.html", heading="Inflation")
    text = page.read_text()
    assert "10.00 points come of the choice alone" in text and "best test epoch" in text


def test_few_tasks_are_compared_by_image(result: Make) -> None:
    rng = np.random.default_rng(0)
    right = {"a": (rng.random(500) < 0.8).tolist(), "b": (rng.random(500) < 0.6).tolist()}
    table = make_table(
        [result(name, top1=float(np.mean(bits)), correct=bits) for name, bits in right.items()]
    )
    (found,) = table.differences
    assert found.resampled == "images" and found.p_value is None
    assert 0 < found.low < found.mean < found.high
    width = 1.96 * np.std(np.subtract(right["a"], right["b"], dtype=float)) / np.sqrt(500)
    assert found.high - found.mean == pytest.approx(width, rel=0.15)
    assert "too few tasks (1)" in difference_text(found)


def test_the_bootstrap_covers_and_ranks_share_ties() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(60):
        gaps = rng.normal(0.02, 0.03, 12)
        found = difference("a", "b", [(gap, 0.0) for gap in gaps], seed=trial)
        hits += found.low <= 0.02 <= found.high
    assert hits >= 48
    ranks = average_ranks({"a": [1, 1], "b": [1, 0], "c": [0, 0]})
    assert ranks == {"a": 1.25, "b": 2.0, "c": 2.75}
    assert average_ranks({}) == {}
    assert wilcoxon(np.zeros(8)) == 1.0 and wilcoxon(np.ones(5)) is None
    with pytest.raises(VituneError, match=r"without a task in common"):
        difference("a", "b", [])


def test_published_tables_are_whole() -> None:
    vtab, fgvc = published_rows("vtab1k"), published_rows("fgvc")
    assert (len(vtab), len(fgvc)) == (16, 14)
    assert all(len(row.accuracies) == 19 for row in vtab)
    assert all(len(row.accuracies) == 5 for row in fgvc)
    for row in (*vtab, *fgvc):
        assert row.mean == pytest.approx(np.mean(list(row.accuracies.values())), abs=0.012)
    row = published_row("vtab1k", "rlrr", "in21k_augreg")
    assert row is not None and row.mean == pytest.approx(0.751)
    assert published_row("vtab1k", "rlrr", None) is None
    assert published_rows("demo") == ()
    assert suite_of(["cub"]) == "fgvc" and suite_of(["digits"]) is None and suite_of([]) is None


@pytest.mark.parametrize(
    ("backbone", "column"),
    [
        ("vit_base_patch16_224.orig_in21k", "in21k"),
        ("vit_base_patch16_224@weights/ViT-B_16.npz", "in21k"),
        ("vit_base_patch16_224.augreg_in21k", "in21k_augreg"),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", None),
        ("vit_large_patch16_224.augreg_in21k", None),
        ("vitune/vit_micro_patch4_32", None),
    ],
)
def test_only_the_papers_own_backbones_have_a_column(backbone: str, column: str | None) -> None:
    assert pretraining_of(backbone) == column


def test_formats_are_well_formed(result: Make) -> None:
    table = make_table(vtab_results(result, "rlrr", 0.1) + vtab_results(result, "ssf", 0.0))
    lines = formatted(table, "markdown").splitlines()
    width = lines[0].count("|")
    assert all(line.count("|") == width for line in lines[:8] if line.startswith("|"))
    tex = formatted(table, "latex")
    assert tex.count(r"\\") == 1 + len(as_grid(table).lines) and r"\pm" in tex
    assert "patch_" not in tex.replace(r"\_", "")
    rows = list(csv.DictReader(io.StringIO(formatted(table, "csv"))))
    assert {row["task"] for row in rows} >= {*VTAB, "mean:tasks", "mean:groups", "mean:natural"}
    with pytest.raises(VituneError, match=r"--format: got 'latx'.*Did you mean latex"):
        formatted(table, "latx")


def test_a_wide_table_is_turned_to_fit_the_terminal(
    result: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = ["rlrr", "a method of a very long name", *(f"other {n}" for n in range(5))]
    results = [one for n, name in enumerate(labels) for one in vtab_results(result, name, n / 100)]
    table = make_table(results)
    grid = as_grid(table)
    cells = [cell.strip() for line in (grid.headings, *grid.lines) for cell in line[1:]]
    for width, blocks in ((80, 2), (300, 0)):
        paper = io.StringIO()
        monkeypatch.setattr(module, "console", Console(width=width, file=paper))
        module.print_table(table)
        lines = paper.getvalue().splitlines()
        assert max(map(len, lines)) <= width and "…" not in paper.getvalue()
        assert all(cell in paper.getvalue() for cell in cells)
        assert len([line for line in lines if line.startswith("cifar ")]) == blocks


def test_the_page_of_a_study(result: Make, tmp_path: Any) -> None:
    kept = {"cka_last": 0.9, "cka_mean": 0.95}
    results = vtab_results(result, "rlrr", 0.1, retention=kept) + vtab_results(result, "ssf", 0.0)
    choice = Choice("rlrr", "cifar", {"lr": 1e-3}, 0.61, (({"lr": 1e-3}, 0.61),))
    page = write_study_page(
        make_table(results), tmp_path / "page.html", heading="A <study>", choices=[choice]
    )
    text = page.read_text()
    assert "A &lt;study&gt;" in text and "<script src" not in text and "http://" not in text
    for title in ("parameters", "processor time", "drift"):
        assert f"Accuracy against {title}" in text or f"against trainable {title}" in text
    assert "lr=0.001" in text and "HTA (NeurIPS 2024)" in text


def test_defaults_are_chosen_over_all_tasks(result: Make) -> None:
    low, high, lost = {"lr": 1e-3}, {"lr": 1e-2}, {"lr": 1.0}
    choices = [
        Choice("a", "t", high, 0.9, ((low, 0.5), (high, 0.9), (lost, 0.99))),
        Choice("a", "u", low, 0.8, ((low, 0.8), (high, 0.7), (lost, None))),
        Choice("b", "t", {}, None),
    ]
    (default,) = choose_defaults(choices)
    assert default.setting == high and default.val == pytest.approx(0.8)
    assert default.best_val == pytest.approx((0.99 + 0.8) / 2)
    assert [setting for setting, _ in default.ranking] == [high, low]
    with pytest.raises(VituneError, match=r"got no setting that finished on every task"):
        choose_defaults(choices[2:])
    (row,) = default_against_tuned(
        [result(top1=0.5), result(task="u", top1=0.6)],
        [result(top1=0.52), result(task="u", top1=0.6)],
    )
    assert row.gap == pytest.approx(0.01) and row.tasks == ("t", "u")
    assert "| a | 50.0 / 52.0 | 60.0 / 60.0 | 55.0 | 56.0 | +1.0 |" in markdown_of([row])
    with pytest.raises(VituneError, match=r"without a method and task in common"):
        default_against_tuned([result()], [result("b")])


def test_both_protocols_in_one_table(tiny_study: Any, bench: Any, tmp_path: Any) -> None:
    from vitune.bench.execution import InProcess

    variant = {"label": "rlrr", "method": "rlrr", "recipe": {"element_dropout": 0.1}}
    honest = tiny_study(variants=[variant], epochs=2)
    published = tiny_study(variants=[variant], epochs=2, protocol="as-published")
    both = run_both(honest, published, tmp_path, executor=InProcess(bench))
    (result,) = both.published.results
    seen = result.published
    assert seen is not None and len(seen["test_by_epoch"]) == 2
    assert seen["test_max"] == seen["test_by_epoch"][1]  # the first epoch is left out
    assert seen["test_last"] == pytest.approx(result.scores.top1)
    assert len(both.table.rows) == 3
    with pytest.raises(VituneError, match=r"got protocol 'honest', expected 'as-published'"):
        run_both(honest, honest, tmp_path)
