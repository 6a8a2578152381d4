"""The hold-out: stratified, seeded, complete, and never the last image of a class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitune.data import hold_out
from vitune.errors import DataError

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=8).filter(lambda s: max(s) > 1)
SEEDS = st.integers(0, 2**31)


def _labels(sizes: list[int], seed: int) -> np.ndarray:
    labels = np.repeat(3 * np.arange(len(sizes)), sizes)
    return np.random.default_rng(seed).permutation(labels)


@given(SIZES, st.floats(0.01, 0.99), SEEDS)
def test_a_fraction_divides_completely_and_leaves_every_class(
    sizes: list[int], fraction: float, seed: int
) -> None:
    labels = _labels(sizes, seed)
    train, val = hold_out(labels, fraction, seed)
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert set(labels[train]) == set(labels)
    assert len(val) == min(max(1, round(fraction * len(labels))), sum(sizes) - len(sizes))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()


@given(SIZES, SEEDS, st.data())
def test_a_count_is_met_exactly(sizes: list[int], seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, sum(sizes) - len(sizes)))
    labels = _labels(sizes, seed)
    train, val = hold_out(labels, count, seed)
    assert len(val) == count and set(labels[train]) == set(labels)


@given(st.lists(st.integers(8, 40), min_size=1, max_size=6), st.floats(0.1, 0.5), SEEDS)
def test_classes_give_in_proportion(sizes: list[int], fraction: float, seed: int) -> None:
    labels = _labels(sizes, seed)
    _, val = hold_out(labels, fraction, seed)
    for label, size in zip(3 * np.arange(len(sizes)), sizes, strict=True):
        assert abs((labels[val] == label).sum() - len(val) * size / len(labels)) < 1 + 1e-9


@given(SIZES, SEEDS, st.data())
def test_marked_images_stay_in_training(sizes: list[int], seed: int, data: st.DataObject) -> None:
    labels = _labels(sizes, seed)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels))))
    first, counts = np.unique(labels[~keep], return_counts=True)
    spare = sum(min(n, (labels == label).sum() - 1) for label, n in zip(first, counts, strict=True))
    if spare < 1:
        with pytest.raises(DataError, match="none of which can be held out"):
            hold_out(labels, 0.5, seed, keep_in_train=keep)
        return
    train, val = hold_out(labels, 0.5, seed, keep_in_train=keep)
    assert not keep[val].any() and set(labels[train]) == set(labels) and 1 <= len(val) <= spare


def test_the_seed_decides() -> None:
    labels = _labels([20, 20, 20], 0)
    first, again, other = (hold_out(labels, 0.3, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("labels", "amount", "message"),
    [
        ([0, 0, 1, 1], 1.0, r"hold-out fraction: got 1.0, expected a number in \(0, 1\)"),
        ([0, 0, 1, 1], -0.1, r"hold-out fraction: got -0.1"),
        ([0, 0, 1, 1], 3, r"hold-out count: got 3, expected 1 to 2 of 4 images"),
        ([0, 0, 1, 1], True, r"hold-out: got True"),
        ([0, 1, 2], 0.5, r"got 3 images, none of which can be held out"),
    ],
)
def test_amounts_out_of_range(labels: list[int], amount: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        hold_out(labels, amount, 0)


@given(SIZES, SEEDS, st.data())
def test_copies_are_never_on_both_sides(sizes: list[int], seed: int, data: st.DataObject) -> None:
    labels = _labels(sizes, seed)
    keys = st.lists(st.integers(0, 9), min_size=len(labels), max_size=len(labels))
    content = [bytes([key]) for key in data.draw(keys)]
    try:
        train, val = hold_out(labels, 0.3, seed, content=content)
    except DataError as error:
        assert "none of which can be held out" in str(error)
        alone = {key for key in content if content.count(key) == 1}
        assert not any((labels == labels[content.index(key)]).sum() > 1 for key in alone)
        return
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert len(val) and set(labels[train]) == set(labels)
    assert not {content[index] for index in train} & {content[index] for index in val}


@pytest.mark.parametrize("copies", [2, 3, 5])
def test_images_that_all_have_copies_are_held_out_with_them(copies: int) -> None:
    labels = np.repeat([0, 1], 10 * copies)
    content = [bytes([index // copies]) for index in range(len(labels))]
    train, val = hold_out(labels, 0.2, 0, content=content)
    assert len(val) == 4 * copies
    assert not {content[index] for index in train} & {content[index] for index in val}
    assert set(labels[val]) == {0, 1}


def test_two_different_images_with_many_copies_are_divided() -> None:
    content = [bytes([index // 5]) for index in range(20)]
    train, val = hold_out([0] * 10 + [1] * 10, 0.2, 0, content=content)
    assert len(train) == len(val) == 10


@given(st.lists(st.integers(8, 40), min_size=2, max_size=6), SEEDS)
def test_few_copies_divide_as_if_they_had_to_stay_in_training(sizes: list[int], seed: int) -> None:
    labels = _labels(sizes, seed)
    content = [bytes([index % 256, index // 256]) for index in range(len(labels))]
    plain = hold_out(labels, 0.2, seed)
    assert [list(side) for side in hold_out(labels, 0.2, seed, content=content)] == [
        list(side) for side in plain
    ]
    first, second = np.flatnonzero(labels == labels[0])[:2]
    content[second] = content[first]
    keep = np.isin(np.arange(len(labels)), [first, second])
    kept = hold_out(labels, 0.2, seed, keep_in_train=keep)
    found = hold_out(labels, 0.2, seed, content=content)
    assert [list(side) for side in found] == [list(side) for side in kept]
