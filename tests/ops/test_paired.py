"""The standard error of a difference, image by image and group by group: known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitune.ops import effective_number, paired


def test_a_group_of_copies_counts_once() -> None:
    """Every image four times says as much as every image once."""
    values = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    copies, groups = values.repeat_interleave(4), np.repeat(np.arange(40), 4)
    once = paired(values, torch.zeros(40))
    assert paired(copies, torch.zeros(160), groups) == pytest.approx(once)
    assert paired(copies, torch.zeros(160))[1] < 0.51 * once[1]


def test_groups_of_one_image_change_nothing() -> None:
    values = torch.randn(30, generator=torch.Generator().manual_seed(1))
    alone = paired(values, torch.zeros(30))
    assert paired(values, torch.zeros(30), np.arange(30)) == pytest.approx(alone)
    assert alone[1] == pytest.approx((values.double().std() / math.sqrt(30)).item())


def test_one_group_has_no_error() -> None:
    values = torch.ones(5)
    assert paired(values, torch.zeros(5), np.zeros(5, np.int64)) == (1.0, math.inf)


def test_two_groups_that_agree_by_chance_are_no_certainty() -> None:
    values = torch.tensor([0.5, -0.4, 0.3, 0.6, -0.5, 0.3], dtype=torch.float64)
    mean, error = paired(values, torch.zeros(6), np.array([0, 0, 0, 1, 1, 1]))
    assert error == paired(values, torch.zeros(6))[1] > mean > 0


def test_intervals_of_grouped_images_cover_the_truth() -> None:
    """The true difference is 0. Of 95 % intervals, 95 % should hold it; blind ones do not."""
    held = {"groups": 0, "images": 0}
    for seed in range(600):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(40), rng.integers(2, 15, 40))
        values = torch.from_numpy(rng.normal(size=40)[groups] + rng.normal(size=len(groups)))
        for name, known in (("groups", groups), ("images", None)):
            mean, error = paired(values, torch.zeros(len(values)), known)
            held[name] += abs(mean) < 1.96 * error
    assert 0.91 < held["groups"] / 600 < 0.98
    assert held["images"] / 600 < 0.75


def test_the_effective_number_of_copies_is_that_of_originals() -> None:
    right = torch.arange(60) % 3 == 0
    groups = np.repeat(np.arange(60), 5)
    assert effective_number(right.repeat_interleave(5), groups) == pytest.approx(60, rel=0.02)
    assert effective_number(right, np.arange(60)) == pytest.approx(60)
    assert effective_number(torch.ones(60, dtype=torch.bool), np.arange(60) // 4) == 15.0
    assert 1.0 <= effective_number(right, np.arange(60) // 30) <= 60.0
