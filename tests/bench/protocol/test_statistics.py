"""Intervals that hold the truth as often as they say, exact ties, corrections, ranks."""

from __future__ import annotations

import math
import re
import shlex
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vitune.bench.tables.differences import corrected
from vitune.bench.tables.mixed_model import (
    Runs,
    difference,
    exact_accuracy,
    holm,
    interval_on_others,
    interval_on_these,
    wilcoxon,
)
from vitune.bench.tables.ranking import (
    average_ranks,
    critical_difference,
    friedman,
    groups_within,
    ranking,
)
from vitune.errors import VituneError

STUDIES = Path(__file__).parents[3] / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    """studies/interval_coverage.py as a module."""
    monkeypatch.syspath_prepend(str(STUDIES))
    import interval_coverage

    yield interval_coverage
    sys.modules.pop("interval_coverage")


def seeds_only(*accuracies: float) -> Runs:
    return Runs(accuracies)


def runs(rng: np.random.Generator, num_seeds: int, num_images: int, share: float) -> Runs:
    correct = rng.random((num_seeds, num_images)) < share
    return Runs(tuple(correct.mean(1).tolist()), num_images, correct, "test")


@pytest.mark.parametrize(
    ("num_tasks", "num_seeds", "spread", "num_trials"),
    [(1, 3, 0.005, 500), (1, 3, 0.019, 500), (1, 5, 0.010, 400), (6, 3, 0.019, 250)],
)
def test_the_interval_on_these_tasks_holds_the_truth_in_95_of_100_studies(
    study: Any, num_tasks: int, num_seeds: int, spread: float, num_trials: int
) -> None:
    """Three standard errors of the simulation around 95 %; docs/statistics.md has the full run."""
    world = study.World(num_tasks, num_seeds, spread)
    found = study.coverage(world, num_trials, seed=1, with_before=False)
    tolerance = 3 * math.sqrt(0.95 * 0.05 / num_trials)
    assert abs(found.on_these - 0.95) < tolerance
    if num_tasks > 1:
        assert abs(found.on_others - 0.95) < tolerance


def test_the_former_bootstrap_forgot_the_seeds(study: Any) -> None:
    """The simulation can tell a bad interval: what vitune did before covers 75 % here."""
    found = study.coverage(study.World(1, 3, 0.019), 200, seed=1)
    assert found.before < 0.85 < 0.9 < found.on_these


def grouped_runs(rng: np.random.Generator, num_seeds: int, groups: Any, gap: float) -> list[Runs]:
    """Two methods of which one is better by `gap`; what one can do in a group, it mostly can."""
    wins = rng.uniform(size=(2, groups.max() + 1)) < np.array([[0.5], [0.5 + gap]])
    chance = np.where(wins[:, groups], 0.9, 0.1)
    correct = rng.random((num_seeds, 2, len(groups))) < chance
    seeds = tuple(range(num_seeds))
    return [
        Runs(tuple(own.mean(1).tolist()), len(groups), own, "test", seeds, groups)
        for own in correct.transpose(1, 0, 2)
    ]


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_images_that_belong_together_are_drawn_together(num_seeds: int) -> None:
    """30 groups of 4 to 16 images; counted as 300 single ones the interval is far too narrow."""
    rng = np.random.default_rng(0)
    sizes = np.tile([4, 10, 16], 10)
    groups = np.repeat(np.arange(30), sizes)
    held = {True: 0, False: 0}
    for _ in range(300):
        first, second = grouped_runs(rng, num_seeds, groups, 0.1)
        for known in held:
            pair = [one if known else replace(one, groups=None) for one in (second, first)]
            found = interval_on_these([(pair[0], pair[1])])
            assert found is not None
            assert found.over[-1] == ("groups of images" if known else "images")
            held[known] += found.low <= 0.8 * 0.1 <= found.high
    assert held[True] / 300 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 300))
    assert held[False] / 300 < 0.7


def test_groups_of_one_image_change_nothing() -> None:
    rng = np.random.default_rng(0)
    pair = grouped_runs(rng, 3, np.arange(80), 0.1)
    alone = [replace(one, groups=None) for one in pair]
    found, single = (interval_on_these([(own[0], own[1])]) for own in (pair, alone))
    assert found is not None and single is not None
    assert (found.low, found.high) == pytest.approx((single.low, single.high))
    one_group = [replace(one, groups=np.zeros(80, np.int64)) for one in pair]
    found = interval_on_these([(one_group[0], one_group[1])])
    assert found is not None and found.over == ("seeds",)


def test_without_images_one_task_is_welchs_t_interval() -> None:
    first, second = (0.71, 0.74, 0.69), (0.66, 0.61, 0.70, 0.65)
    found = difference("a", "b", [(seeds_only(*first), seeds_only(*second))])
    welch = stats.ttest_ind(first, second, equal_var=False)
    low, high = welch.confidence_interval(0.95)
    assert found.on_these is not None and found.on_these.over == ("seeds",)
    assert (found.on_these.low, found.on_these.high) == pytest.approx((low, high))
    assert found.on_these.p_value == pytest.approx(welch.pvalue)
    assert found.on_these.degrees_of_freedom == pytest.approx(welch.df)


def test_the_same_seeds_are_compared_seed_by_seed() -> None:
    first, second = (0.71, 0.74, 0.69, 0.70), (0.66, 0.70, 0.63, 0.66)
    sides = [Runs(own, seeds=(0, 1, 2, 5)) for own in (first, second)]
    found = difference("a", "b", [(sides[0], sides[1])]).on_these
    low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found is not None and (found.low, found.high) == pytest.approx((low, high))
    apart = difference("a", "b", [(sides[0], Runs(second, seeds=(0, 1, 2, 4)))]).on_these
    low, high = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert apart is not None and (apart.low, apart.high) == pytest.approx((low, high))


def test_paired_variances_are_those_of_a_crossed_analysis_of_variance() -> None:
    """By hand: (MS seeds + MS images - MS rest) / (k n)."""
    rng = np.random.default_rng(8)
    pair = [replace(runs(rng, 4, 150, share), seeds=(3, 4, 5, 6)) for share in (0.6, 0.5)]
    found = difference("a", "b", [(pair[0], pair[1])]).on_these
    gaps = np.subtract(pair[0].correct, pair[1].correct, dtype=float)
    k, n = gaps.shape
    of_seeds = n * gaps.mean(1).var(ddof=1)
    of_images = k * gaps.mean(0).var(ddof=1)
    rest = (np.square(gaps - gaps.mean()).sum() - (k - 1) * of_seeds - (n - 1) * of_images) / (
        (k - 1) * (n - 1)
    )
    variance = (max(of_seeds - rest, 0) + of_images) / (k * n)
    freedom = variance**2 / (
        (of_seeds / (k * n)) ** 2 / (k - 1) + (of_images / (k * n)) ** 2 / (n - 1)
    )
    half = stats.t(freedom).ppf(0.975) * math.sqrt(variance)
    assert found is not None and (found.high - found.low) / 2 == pytest.approx(half)


def test_one_seed_is_the_paired_t_interval_over_images() -> None:
    rng = np.random.default_rng(3)
    first, second = runs(rng, 1, 400, 0.8), runs(rng, 1, 400, 0.7)
    found = difference("a", "b", [(first, second)]).on_these
    assert first.correct is not None and second.correct is not None and found is not None
    paired = stats.ttest_rel(first.correct[0].astype(float), second.correct[0].astype(float))
    low, high = paired.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.over == ("images",)


def test_variances_are_those_of_a_crossed_analysis_of_variance() -> None:
    """By hand: mean squares of seeds, images and their rest for each method."""
    rng = np.random.default_rng(4)
    pair = runs(rng, 3, 200, 0.6), runs(rng, 4, 200, 0.5)
    found = difference("a", "b", [pair]).on_these
    assert found is not None
    variance = 0.0
    for one in pair:
        assert one.correct is not None
        right = one.correct.astype(float)
        k, n = right.shape
        seeds = n * right.mean(1).var(ddof=1)
        rest = (
            ((right - right.mean()) ** 2).sum() - (k - 1) * seeds
            - k * ((right.mean(0) - right.mean()) ** 2).sum()
        ) / ((k - 1) * (n - 1))  # fmt: skip
        variance += (seeds - rest) / (k * n)
    gaps = pair[0].correct.mean(0) - pair[1].correct.mean(0)  # type: ignore[union-attr]
    variance = max(variance, 0) + gaps.var(ddof=1) / len(gaps)
    half = stats.t(found.degrees_of_freedom).ppf(0.975) * math.sqrt(variance)
    assert (found.high - found.low) / 2 == pytest.approx(half)


def test_images_are_paired_only_where_they_are_the_same() -> None:
    rng = np.random.default_rng(5)
    easy = rng.random(500) < 0.7
    first = Runs((float(easy.mean()),), 500, easy[None], "one")
    flipped = easy.copy()
    flipped[:10] = ~flipped[:10]
    same = Runs((float(flipped.mean()),), 500, flipped[None], "one")
    other = Runs(same.accuracies, 500, same.correct, "another")
    paired = difference("a", "b", [(first, same)]).on_these
    apart = difference("a", "b", [(first, other)]).on_these
    unknown = difference("a", "b", [(first, Runs(same.accuracies, 500))]).on_these
    assert paired is not None and apart is not None and unknown is not None
    assert paired.high - paired.low < 0.3 * (apart.high - apart.low)
    assert unknown.high - unknown.low == pytest.approx(apart.high - apart.low, rel=0.01)


def test_tasks_as_a_sample_are_a_t_interval_over_their_differences() -> None:
    gaps = np.array([0.02, 0.05, -0.01, 0.03])
    found = interval_on_others(gaps)
    low, high = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert found is not None and found.over == ("tasks", "seeds", "images")
    assert (found.low, found.high) == pytest.approx((low, high))
    assert interval_on_others(gaps[:2]) is None
    # 1 of 40 images on each of three tasks: the interval was a point, with a p of 1e-32.
    assert interval_on_others(np.full(3, 1 / 40)) is None
    assert interval_on_others(np.zeros(3)) is None
    assert wilcoxon(np.ones(5)) is None and wilcoxon(np.zeros(8)) == 1.0


def test_one_seed_without_images_has_no_interval() -> None:
    found = difference("a", "b", [(seeds_only(0.5), seeds_only(0.4))])
    assert found.on_these is None and found.mean == pytest.approx(0.1)


def test_equal_seeds_of_unknown_images_give_no_interval() -> None:
    """Two seeds that happen to agree say nothing of how far others would be off."""
    same = seeds_only(0.5, 0.5)
    assert difference("a", "b", [(same, same)]).on_these is None
    assert difference("a", "b", [(same, seeds_only(0.25, 0.25))]).on_these is None
    assert difference("a", "b", [(seeds_only(0.5, 0.6), same)]).on_these is not None


@pytest.mark.parametrize(
    ("tasks", "match"),
    [
        ([], "got 'a' and 'b' without a task in common"),
        ([(seeds_only(), seeds_only(0.5))], "got a task without a run of 'a' or 'b'"),
    ],
)
def test_nothing_to_compare_is_refused(tasks: list[tuple[Runs, Runs]], match: str) -> None:
    with pytest.raises(VituneError, match=match):
        difference("a", "b", tasks)


def test_equal_counts_tie_whatever_the_rounding_of_their_sums() -> None:
    """The means of 0, 0, 0.3 and 0, 0.1, 0.2 differ in floating point; 3 of 30 is 3 of 30."""
    one = Runs((0.0, 0.0, 0.3), 10)
    two = Runs((0.0, 0.1, 0.2), 10)
    assert math.fsum(one.accuracies) / 3 < math.fsum(two.accuracies) / 3
    assert one.total == two.total == Fraction(1, 10)
    assert average_ranks({"a": [one.total], "b": [two.total]}) == {"a": 1.5, "b": 1.5}
    assert difference("a", "b", [(one, two)]).mean == 0.0
    assert exact_accuracy(2 / 3, 3000) == Fraction(2, 3)
    assert exact_accuracy(0.605, 2) == exact_accuracy(0.605, None) == Fraction(121, 200)
    assert Runs((0.5, 0.25), 4).total == Fraction(3, 8)


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    rng = np.random.default_rng(6)
    tasks = [(runs(rng, 3, 100, 0.7), runs(rng, 3, 100, 0.6)) for _ in range(6)]
    twice = corrected([difference("a", "b", tasks), difference("b", "a", tasks[:1])])
    assert twice[0].on_these is not None and twice[0].holm_p is not None
    assert twice[0].holm_p == pytest.approx(2 * twice[0].on_these.p_value)
    assert twice[0].wilcoxon_holm_p == twice[0].wilcoxon_p and twice[1].wilcoxon_holm_p is None


def test_friedmans_test_is_scipys_with_the_correction_of_iman_and_davenport() -> None:
    rng = np.random.default_rng(7)
    table = rng.normal(size=(4, 9)).round(1)  # ties
    table[0] += 0.7
    ranks = stats.rankdata(-table, axis=0)
    chi_square = stats.friedmanchisquare(*table).statistic
    corrected_statistic = 8 * chi_square / (9 * 3 - chi_square)
    assert friedman(ranks) == pytest.approx(stats.f.sf(corrected_statistic, 3, 3 * 8))
    assert friedman(np.full((3, 5), 2.0)) == 1.0
    alike = friedman(np.repeat([[1.0], [2.0], [3.0]], 5, axis=1))
    assert alike == pytest.approx((1 / 6) ** 4)  # four tasks happen to repeat the first's order
    tied = friedman(np.repeat([[1.0], [2.5], [2.5]], 5, axis=1))
    assert tied == pytest.approx((1 / 3) ** 4)  # two methods equal: a task has three orders


@pytest.mark.parametrize(("num_methods", "q"), [(2, 1.960), (5, 2.728), (7, 2.949), (10, 3.164)])
def test_critical_differences_are_those_of_the_published_table(num_methods: int, q: float) -> None:
    """Demšar 2006, Table 5(a)."""
    expected = q * math.sqrt(num_methods * (num_methods + 1) / (6 * 10))
    assert critical_difference(num_methods, 10) == pytest.approx(expected, abs=1e-3)


def test_methods_within_the_critical_difference_stand_in_one_group() -> None:
    ranks = {"a": 1.0, "b": 1.5, "c": 2.4, "d": 4.0}
    assert groups_within(ranks, 1.0) == (("a", "b"), ("b", "c"))
    assert groups_within(ranks, 2.0) == (("a", "b", "c"), ("c", "d"))
    assert groups_within(ranks, 0.1) == ()
    scores = {name: [base + 0.01 * task for task in range(10)] for name, base in
              (("poor", 0.1), ("fair", 0.5), ("good", 0.9))}  # fmt: skip
    found = ranking(scores)
    assert found is not None and list(found.ranks) == ["good", "fair", "poor"]
    assert found.is_ordered and found.groups == (("good", "fair"), ("fair", "poor"))
    assert ranking({"a": [1] * 9, "b": [2] * 9}) is None
    assert ranking({name: [1, 2, 3, 4] for name in "abc"}) is None and ranking({}) is None


def test_equal_methods_are_seldom_told_apart(study: Any) -> None:
    assert study.false_orders(4, 6, 400, seed=2) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_the_page_on_rlrr_says_what_its_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row that stands in three tables is one method: it is not compared with itself."""
    text = (STUDIES.parent / "docs" / "rlrr.md").read_text()
    page = " ".join(text.replace("\\\n", " ").split())
    command = re.search(r"python (studies/printed_intervals\.py .*? --image-error [\d.]+)", page)
    assert command is not None
    monkeypatch.chdir(STUDIES.parent)
    monkeypatch.syspath_prepend(str(STUDIES))
    monkeypatch.setattr(sys, "argv", shlex.split(command[1]))
    import printed_intervals

    printed_intervals.main()
    sys.modules.pop("printed_intervals")
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert f"over the {len(rows)} comparisons with RLRR" in page
    by_holm = {row[0].partition(" - ")[2]: float(row[4]) for row in rows}
    assert f"p = {by_holm['w/o W (hadamard=False)']:.4f} corrected" in page
    right = by_holm['right only (sides="out"), residual']
    assert f"p = 0.026, {right:.2f} corrected" in page
