"""Angles, orthogonality and ranks against answers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from analysis_matrices import orthonormal
from hypothesis import given, settings
from hypothesis import strategies as st

from vitune.analysis.geometry import (
    basis_loss,
    effective_rank,
    principal_angles,
    relative_deviation,
    stable_rank,
)


@pytest.mark.parametrize("degrees", [0.0, 1e-8, 1e-3, 30.0, 45.0, 60.0, 89.999, 90.0])
def test_angle_between_two_lines_in_a_plane(degrees: float) -> None:
    turn = math.radians(degrees)
    first = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    second = torch.tensor([[math.cos(turn)], [math.sin(turn)], [0.0]], dtype=torch.float64)
    assert principal_angles(first, second).item() == pytest.approx(degrees, rel=1e-9, abs=1e-13)


def test_angles_of_two_planes_that_share_a_line() -> None:
    first = torch.eye(4, dtype=torch.float64)[:, :2]
    second = torch.eye(4, dtype=torch.float64)[:, [0, 2]]
    assert principal_angles(first, second).tolist() == pytest.approx([0.0, 90.0])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 5), n=st.integers(5, 9))
def test_angles_lie_in_a_quarter_turn_and_do_not_depend_on_order_or_basis(
    seed: int, k: int, n: int
) -> None:
    first, second = orthonormal(n, k, seed), orthonormal(n, k, seed + 1)
    angles = principal_angles(first, second)
    assert ((angles >= 0) & (angles <= 90)).all()
    assert (angles.diff() >= -1e-9).all()
    torch.testing.assert_close(principal_angles(second, first), angles)
    turned = orthonormal(n, n, seed + 2)
    mixed = first @ orthonormal(k, k, seed + 3)
    torch.testing.assert_close(principal_angles(turned @ mixed, turned @ second), angles)


def test_basis_loss_of_two_columns_is_a_function_of_their_cosine() -> None:
    for cosine in (0.0, 0.3, -0.7, 1.0):
        sine = math.sqrt(1 - cosine**2)
        columns = torch.tensor([[2.0, 5 * cosine], [0.0, 5 * sine]], dtype=torch.float64)
        expected = math.sqrt(2 * cosine**2 / (2 + 2 * cosine**2))
        assert basis_loss(columns) == pytest.approx(expected, abs=1e-12)


def test_basis_loss_counts_a_zero_column_as_orthogonal() -> None:
    columns = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert basis_loss(columns) == 0
    assert basis_loss(torch.zeros(3, 2, dtype=torch.float64)) == 0


def test_ranks_of_known_spectra() -> None:
    equal = torch.full((6,), 2.5, dtype=torch.float64)
    assert effective_rank(equal) == pytest.approx(6)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0
    two_to_one = torch.tensor([2.0, 1.0], dtype=torch.float64)
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert effective_rank(two_to_one) == pytest.approx(math.exp(entropy))
    assert stable_rank(energy=4 + 1, largest=2.0) == pytest.approx(1.25)
    assert stable_rank(energy=0.0, largest=0.0) == 0


def test_relative_deviation_of_zeros_is_zero_or_unknown() -> None:
    zeros, ones = torch.zeros(3), torch.ones(3)
    assert relative_deviation(zeros, zeros) == 0
    assert relative_deviation(zeros, ones) is None
    assert relative_deviation(ones, 1.25 * ones) == pytest.approx(0.25)
