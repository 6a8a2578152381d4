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
from vitune.bench.defaults import choose_defaults, default_against_tuned, markdown_of
from vitune.bench.study.cells import CellResult
from vitune.bench.study.protocol import Choice
from vitune.bench.tables.rank_diagram import rank_diagram
from vitune.bench.tables.study_page import inflation, write_study_page
from vitune.bench.tables.study_table import make_table
from vitune.bench.tables.sureness import difference_text, explanation, p_text, ranking_text, verdict
from vitune.bench.tables.table_formats import as_grid, formatted, label_of
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
    assert found.mean == pytest.approx(0.1) and found.num_tasks == 8
    assert found.wilcoxon_p == found.wilcoxon_holm_p == pytest.approx(2 / 2**8)
    assert found.on_others is None  # the difference is the same on every task


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


def test_a_run_of_two_studies_counts_once(result: Make) -> None:
    own = [result(label, "t", 0.5, seed) for label in ("a", "b") for seed in (0, 1)]
    lost = result("a", "t", seed=1, status="failed", scores=None, error="x", address="")
    table = make_table(
        [lost, *own, *own], missing=["u", "u", "t"], unfinished=[("a", "t", 1), ("b", "t", 2)]
    )
    assert table.rows == make_table(own, unfinished=[("b", "t", 2)]).rows
    assert [row.figures["t"].seeds for row in table.rows] == [(0, 1), (0, 1)]
    assert table.differences == make_table(own).differences
    assert table.missing == ("u",) and any("lacks 1 task" in note for note in table.notes)
    with pytest.raises(VituneError, match="two different settings"):
        make_table([own[0], result("a", config={**own[0].config, "lr": 0.2})])


def test_missing_tasks_and_failures_are_named(result: Make) -> None:
    failed = result("a", "u", status="failed", scores=None, error="OSError: full")
    table = make_table([result(), failed], missing=["svhn", "dtd"])
    assert any("lacks 2 tasks" in note and "svhn, dtd" in note for note in table.notes)
    assert any("1 run failed" in note and "OSError: full" in note for note in table.notes)


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
    monkeypatch.setattr(module, "console", Console(width=100, file=paper, markup=False))
    module.print_table(table)
    assert "[as-published:" in paper.getvalue() and "mean" not in as_grid(table).headings
    ((label, best, last),) = inflation(table)
    assert (label, best, last) == ("a", 0.6, 0.5)
    page = write_study_page(table, tmp_path / "page.html", heading="Inflation")
    text = page.read_text()
    assert "10.00 points come from the choice alone" in text and "best test epoch" in text


def seeded(result: Make, name: str, share: float, rng: np.random.Generator, task: str = "t",
           num_seeds: int = 3) -> list[CellResult]:  # fmt: skip
    """Runs whose accuracy is that of their bits."""
    bits = [(rng.random(500) < share).tolist() for _ in range(num_seeds)]
    return [
        result(name, task, float(np.mean(right)), seed, correct=right)
        for seed, right in enumerate(bits)
    ]


def test_one_task_is_compared_over_seeds_and_images(result: Make) -> None:
    rng = np.random.default_rng(0)
    table = make_table(seeded(result, "a", 0.8, rng) + seeded(result, "b", 0.6, rng))
    (found,) = table.differences
    assert found.on_these is not None and found.on_these.over == ("seeds", "images")
    assert found.on_others is None and found.wilcoxon_p is None
    assert 0 < found.on_these.low < found.mean < found.on_these.high
    text = difference_text(found)
    assert "points on this task, 95 % interval" in text and "over seeds and images" in text
    assert "tasks like these" not in text
    assert verdict(table).startswith("Told apart (on this task, 95 %, over seeds and images")
    assert "a above b." in verdict(table) and verdict(table) in formatted(table, "markdown")
    assert table.ranking is None and table.no_ranking == ""


def test_one_seed_is_compared_over_images_and_says_so(result: Make) -> None:
    rng = np.random.default_rng(1)
    results = seeded(result, "a", 0.7, rng, num_seeds=1) + seeded(result, "b", 0.7, rng)
    table = make_table(results)
    (found,) = table.differences
    assert found.on_these is not None and found.on_these.over == ("images",)
    assert any("one seed" in sentence for sentence in explanation(table.differences))
    assert "No two methods can be told apart" in verdict(table)
    mixed = make_table([*results, *seeded(result, "c", 0.1, rng)])
    assert "over images, and seeds if there are several" in verdict(mixed)
    assert "2 of 3 pairs can be told apart" in verdict(mixed)
    assert verdict(mixed).endswith("these cannot: a and b.")


def test_many_methods_are_ranked_and_corrected_for(result: Make) -> None:
    rng = np.random.default_rng(2)
    shares = {"good": 0.9, "fair": 0.6, "same": 0.6, "poor": 0.3}
    results = [
        one
        for name, share in shares.items()
        for task in VTAB
        for one in seeded(result, name, share, rng, task)
    ]
    table = make_table(results)
    assert len(table.differences) == 6 and table.ranking is not None
    names = list(table.ranking.ranks)
    assert (names[0], names[-1]) == ("good", "poor")
    assert {row.label: row.rank for row in table.rows} == pytest.approx(dict(table.ranking.ranks))
    assert all(
        found.holm_p is not None and found.on_these and found.holm_p >= found.on_these.p_value
        for found in table.differences
    )
    text = formatted(table, "markdown")
    assert ranking_text(table.ranking) in text and "after Holm's correction" in text
    assert "on tasks like these" in text and "critical difference 1.66" in text
    few = make_table([one for one in results if one.task in VTAB[:4]])
    assert few.ranking is None and "4 tasks that all methods have are too few" in few.no_ranking


def test_ranks_of_several_backbones_are_not_mixed(result: Make) -> None:
    results = [
        result(name, task, config={"method": name, "backbone": backbone, "seed": 0})
        for name in ("a", "b", "c")
        for task in VTAB
        for backbone in ("tiny", "large")
    ]
    table = make_table(results, split_columns=True)
    assert table.ranking is None and "several backbones" in table.no_ranking


def test_equal_counts_share_a_rank(result: Make) -> None:
    """1 of 3 and 2 of 3 sum to what 0 of 3 and 3 of 3 do; as floats they need not."""
    bits = {0: [False] * 10, 1: [True] + [False] * 9, 2: [True] * 2 + [False] * 8,
            3: [True] * 3 + [False] * 7}  # fmt: skip
    counts = {"a": (0, 0, 3), "b": (0, 1, 2)}
    results = [
        result(name, top1=count / 10, seed=seed, correct=bits[count])
        for name, own in counts.items()
        for seed, count in enumerate(own)
    ]
    table = make_table(results)
    assert [row.rank for row in table.rows] == [1.5, 1.5]
    assert table.differences[0].mean == 0.0 and table.rows[0].exact == table.rows[1].exact


def test_a_correction_that_leaves_nothing_is_told(result: Make) -> None:
    rng = np.random.default_rng(3)
    results = [
        one
        for name in "abcdefg"
        for task in VTAB[:6]
        for one in seeded(result, name, 0.5, rng, task, num_seeds=2)
    ]
    table = make_table(results)
    (warning,) = [s for s in explanation(table.differences) if "whatever the results" in s]
    assert "21 pairs" in warning and "0.66" in warning
    assert "no order" in ranking_text(table.ranking).lower()  # type: ignore[arg-type]
    assert p_text(None) == "–" and p_text(1e-9) == "< 0.0001" and p_text(0.04) == "0.04"


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
    results[0] = result("rlrr", "cifar", 0.5, retention=kept, config=results[0].config)
    choice = Choice("rlrr", "cifar", {"lr": 1e-3}, 0.61, (({"lr": 1e-3}, 0.61),))
    page = write_study_page(
        make_table(results), tmp_path / "page.html", heading="A <study>", choices=[choice]
    )
    text = page.read_text()
    assert "A &lt;study&gt;" in text and "<script src" not in text and "http://" not in text
    for title in ("parameters", "processor time", "drift"):
        assert f"Accuracy against {title}" in text or f"against trainable {title}" in text
    assert "lr=0.001" in text and "HTA (NeurIPS 2024)" in text
    assert "tasks like these" in text and "Holm" in text and 'class="chart ranks"' not in text


def test_the_page_draws_the_critical_difference(result: Make, tmp_path: Any) -> None:
    rng = np.random.default_rng(4)
    shares = {"good": 0.9, "a method of a very long name": 0.6, "same": 0.6, "poor": 0.3}
    results = [
        one
        for name, share in shares.items()
        for task in VTAB
        for one in seeded(result, name, share, rng, task)
    ]
    table = make_table(results)
    text = write_study_page(table, tmp_path / "page.html", heading="Ranks").read_text()
    assert 'class="chart ranks"' in text and "critical difference 1.66" in text
    assert verdict(table) in text.replace("&#39;", "'")
    assert text.count('<line class="group"') == len(table.ranking.groups)  # type: ignore[union-attr]
    diagram = rank_diagram(table.ranking)  # type: ignore[arg-type]
    assert [place.y for place in diagram.places] == sorted(place.y for place in diagram.places)
    assert all(diagram.left < place.x < diagram.right for place in diagram.places)
    assert all(len(place.name) <= 18 for place in diagram.places)
    assert all(bar.x < diagram.width for bar in diagram.bars)
    few = make_table([one for one in results if one.task in VTAB[:3]])
    text = write_study_page(few, tmp_path / "few.html", heading="Few").read_text()
    assert 'class="chart ranks"' not in text and "No critical-difference diagram" in text


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
    with pytest.raises(VituneError, match=r"without a common method and task"):
        default_against_tuned([result()], [result("b")])


def test_both_protocols_in_one_table(tiny_study: Any, bench: Any, tmp_path: Any) -> None:
    from vitune.bench.study.execution import InProcess

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
