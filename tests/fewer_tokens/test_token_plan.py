"""The words of `--tokens`, and how many patches go where."""

from __future__ import annotations

import pytest

from vitune.errors import VituneError
from vitune.fewer_tokens import TokenPlan


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("keep", "keep"),
        ("drop:0.50", "drop:0.5"),
        ("DROP:.25", "drop:0.25"),
        ("merge:0.5", "merge:0.5"),
        ("merge:0.5:train", "merge:0.5:train"),
        ("merge:0.6@all", "merge:0.6@all"),
        ("merge:0.5@3,7:train", "merge:0.5@3,7:train"),
        ("merge:0", "merge:0"),
    ],
)
def test_words_are_read_and_told_alike(text: str, told: str) -> None:
    plan = TokenPlan.parse(text)
    assert str(plan) == told and TokenPlan.parse(str(plan)) == plan


def test_when_a_plan_acts() -> None:
    plans = [TokenPlan.parse(t) for t in ("keep", "drop:0.5", "merge:0.5", "merge:0.5:train")]
    assert [plan.in_training for plan in plans] == [False, True, True, True]
    assert [plan.in_inference for plan in plans] == [False, False, True, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("drop", r"--tokens: got 'drop', expected keep, drop:SHARE or merge"),
        ("drop:1", r"--tokens: got 'drop:1', expected a share below 1"),
        ("drop:-0.5", r"got 'drop:-0\.5', expected keep"),
        ("drop:0.5@3", r"got 'drop:0\.5@3', expected keep"),
        ("merge:0.5@7,3", r"expected increasing block numbers"),
        ("merge:0.5@3,3", r"expected increasing block numbers"),
        ("merge:nan", r"expected keep, drop"),
        ("prune:0.5", r"expected keep, drop"),
    ],
)
def test_other_words_are_refused_in_a_line(text: str, expected: str) -> None:
    with pytest.raises(VituneError, match=expected) as told:
        TokenPlan.parse(text)
    assert "\n" not in str(told.value)


def test_every_merging_removes_the_same_part() -> None:
    assert TokenPlan.parse("merge:0.5").removals(12, 196) == {5: 98}
    every = TokenPlan.parse("merge:0.6@all").removals(12, 196)
    assert list(every) == list(range(11)) and sum(every.values()) == round(0.6 * 196)
    assert list(every.values())[::10] == [16, 7]
    assert TokenPlan.parse("merge:0.75@0,2").removals(4, 8) == {0: 4, 2: 2}
    assert TokenPlan.parse("merge:0@all").removals(3, 9) == {0: 0, 1: 0}
    assert TokenPlan.parse("keep").removals(12, 196) == {}


@pytest.mark.parametrize(
    ("text", "depth", "expected"),
    [
        ("merge:0.6", 12, r"expected a share of at most 0\.5: each merging removes"),
        ("merge:0.5@11", 12, r"on 12 blocks, expected some of the blocks 0 to 10"),
        ("merge:0.5", 1, r"on 1 blocks, expected some of the blocks"),
    ],
)
def test_what_a_network_cannot_do_is_refused(text: str, depth: int, expected: str) -> None:
    with pytest.raises(VituneError, match=expected):
        TokenPlan.parse(text).removals(depth, 196)
