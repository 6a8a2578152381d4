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
