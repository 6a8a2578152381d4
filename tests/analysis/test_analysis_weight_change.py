"""`compare_weights` on changes whose every figure is known beforehand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from analysis_matrices import composed, orthonormal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitune.analysis import compare_weights
from vitune.errors import VituneError

VALUES = torch.tensor([9.0, 7, 6, 5, 4, 3.5, 3, 2.5, 1, 0.5], dtype=torch.float64)


@pytest.fixture
def bases() -> tuple[Tensor, Tensor]:
    """Left and right bases of a 13 x 10 weight, the left one with three directions to spare."""
    return orthonormal(13, 13, seed=1), orthonormal(10, 10, seed=2)


def test_dimensions_and_energy_are_numbers_of_any_library() -> None:
    weight = torch.eye(4)
    change = compare_weights(weight, 2 * weight, top=np.array([1, 2]), energy=np.float32(0.5))
    assert [part.k for part in change.subspaces] == [1, 2, 2]
    json.dumps([(part.k, part.energy) for part in change.subspaces])
    for wrong in ({"top": [1.5]}, {"top": ["1"]}, {"top": np.array([])}, {"energy": "0.9"}):
        with pytest.raises(VituneError, match=r"^(top|energy): got .*, expected"):
            compare_weights(weight, weight, **wrong)


def test_nothing_changed_gives_zero_everywhere(bases: tuple[Tensor, Tensor]) -> None:
    weight = composed(bases[0][:, :10], VALUES, bases[1])
    change = compare_weights(weight, weight.clone())
    assert change.exact
    assert change.relative_deviation == 0
    assert change.spectrum_distortion == 0
    assert (change.effective_rank, change.stable_rank) == (0, 0)
    assert change.intruders is not None
    assert (change.intruders.left, change.intruders.right) == (0, 0)
    assert change.basis_loss is not None
    assert max(change.basis_loss.left, change.basis_loss.right) < 1e-12
    for part in change.subspaces:
        assert (part.left_share, part.right_share) == (0, 0)
        assert max(part.left_degrees + part.right_degrees) < 1e-10
    assert change.values_before == pytest.approx(VALUES.tolist())
    assert change.values_error is None


def test_rotation_of_one_left_vector_out_of_the_column_space(bases: tuple[Tensor, Tensor]) -> None:
    degrees = 70.0
    turn = math.radians(degrees)
    left, right = bases
    turned = left[:, :10].clone()
    turned[:, 0] = math.cos(turn) * left[:, 0] + math.sin(turn) * left[:, 11]
    change = compare_weights(
        composed(left[:, :10], VALUES, right), composed(turned, VALUES, right), top=(1, 8, 64)
    )
    assert change.values_after == pytest.approx(VALUES.tolist())
    assert change.spectrum_distortion == pytest.approx(0, abs=1e-12)
    length = 2 * math.sin(turn / 2) * float(VALUES[0])
    assert change.relative_deviation == pytest.approx(length / float(VALUES.norm()))
    assert change.effective_rank == pytest.approx(1, abs=1e-9)
    assert change.stable_rank == pytest.approx(1)
    one, eight = change.subspace(1), change.subspace(8)
    assert one is not None and eight is not None
    assert change.subspace(64) is None, "a 13 x 10 matrix has no 64-dimensional subspaces"
    assert one.left_degrees == pytest.approx([degrees])
    assert one.right_degrees == pytest.approx([0], abs=1e-9)
    assert eight.left_degrees == pytest.approx([0] * 7 + [degrees], abs=1e-9)
    assert eight.mean_degrees == pytest.approx(degrees / 16)
    assert one.right_share == pytest.approx(1)
    assert one.left_share == pytest.approx((1 - math.cos(turn)) / 2)
    assert one.gap == pytest.approx((9 - 7) / 9)
    assert change.basis_loss is not None
    assert change.basis_loss.left == pytest.approx(0, abs=1e-12)
    assert change.intruders is not None
    assert (change.intruders.left, change.intruders.right) == (1, 0)


@pytest.mark.parametrize(("degrees", "intruders"), [(50.0, 0), (56.0, 1)])
def test_intruder_where_the_cosine_falls_below_0_6(
    bases: tuple[Tensor, Tensor], degrees: float, intruders: int
) -> None:
    left, right = bases
    turned = left[:, :10].clone()
    turn = math.radians(degrees)
    turned[:, 2] = math.cos(turn) * left[:, 2] + math.sin(turn) * left[:, 12]
    change = compare_weights(composed(left[:, :10], VALUES, right), composed(turned, VALUES, right))
    assert change.intruders is not None
    assert (change.intruders.left, change.intruders.num_checked) == (intruders, 10)


def test_strong_rank_one_change_outside_both_bases_brings_one_intruder_on_each_side() -> None:
    left, right = orthonormal(20, 13, seed=3), orthonormal(20, 13, seed=4)
    weight = composed(left[:, :12], torch.linspace(3, 1, 12, dtype=torch.float64), right[:, :12])
    after = weight + 5 * torch.outer(left[:, 12], right[:, 12])
    change = compare_weights(weight, after)
    assert change.intruders is not None
    assert (change.intruders.left, change.intruders.right) == (1, 1)
    assert change.values_after[:3] == pytest.approx((5, *change.values_before[:2]))
    assert change.effective_rank == pytest.approx(1, abs=1e-9)
    one = change.subspace(1)
    assert one is not None
    assert (one.left_degrees, one.right_degrees) == (pytest.approx([90]), pytest.approx([90]))
    assert (one.left_share, one.right_share) == (
        pytest.approx(0, abs=1e-12),
        pytest.approx(0, abs=1e-12),
    )


def test_scaling_keeps_every_subspace(bases: tuple[Tensor, Tensor]) -> None:
    weight = composed(bases[0][:, :10], VALUES, bases[1])
    change = compare_weights(weight, 1.1 * weight)
    assert change.relative_deviation == pytest.approx(0.1)
    assert change.spectrum_distortion == pytest.approx(0.1)
    assert change.stable_rank == pytest.approx(float(VALUES.square().sum()) / 81)
    shares = VALUES.square().cumsum(0) / VALUES.square().sum()
    for part in change.subspaces:
        assert max(part.left_degrees + part.right_degrees) < 1e-6
        assert part.left_share == pytest.approx(float(shares[part.k - 1]))
        assert part.right_share == pytest.approx(float(shares[part.k - 1]))
    assert change.basis_loss is not None
    assert max(change.basis_loss.left, change.basis_loss.right) < 1e-12


def test_change_of_the_values_alone_keeps_both_bases(bases: tuple[Tensor, Tensor]) -> None:
    left, right = bases
    bent = VALUES + 0.2 * torch.arange(10)
    change = compare_weights(
        composed(left[:, :10], VALUES, right), composed(left[:, :10], bent, right), energy=1.0
    )
    assert change.basis_loss is not None
    assert max(change.basis_loss.left, change.basis_loss.right) < 1e-12
    assert change.relative_deviation == pytest.approx(change.spectrum_distortion)


def test_energy_chooses_the_smallest_dimension_that_holds_it(
    bases: tuple[Tensor, Tensor],
) -> None:
    weight = composed(bases[0][:, :10], VALUES, bases[1])
    held = (VALUES.square().cumsum(0) / VALUES.square().sum()).tolist()
    for k in (1, 4, 10):
        change = compare_weights(weight, 2 * weight, energy=held[k - 1])
        assert change.subspaces[-1].k == k
        assert change.subspaces[-1].energy == pytest.approx(held[k - 1])


def test_one_sided_scales_cost_the_known_orthogonality_on_their_side() -> None:
    """W = R(45°) diag(2, 1) and W' = diag(γ) W: cos of M_l u_1, M_l u_2 from γ alone."""
    half = math.sqrt(0.5)
    left = torch.tensor([[half, -half], [half, half]], dtype=torch.float64)
    weight = left @ torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    scales = torch.tensor([1.3, 0.9], dtype=torch.float64)
    cosine = (scales[1] ** 2 - scales[0] ** 2) / scales.square().sum()
    expected = math.sqrt(2 * cosine**2 / (2 + 2 * cosine**2))
    on_left = compare_weights(weight, scales[:, None] * weight, top=(1,), energy=1.0)
    on_right = compare_weights(weight.T, weight.T * scales, top=(1,), energy=1.0)
    assert on_left.basis_loss is not None and on_right.basis_loss is not None
    assert on_left.basis_loss.left == pytest.approx(expected)
    assert on_right.basis_loss.right == pytest.approx(expected)
    assert on_left.basis_loss.left < on_left.basis_loss.right
    assert on_right.basis_loss.right < on_right.basis_loss.left


def test_orthogonal_left_map_keeps_the_left_basis_orthogonal_and_turns_it() -> None:
    weight = composed(orthonormal(6, 6, 5), VALUES[:6], orthonormal(6, 6, 6))
    change = compare_weights(weight, orthonormal(6, 6, 7) @ weight, energy=1.0)
    assert change.basis_loss is not None
    assert change.basis_loss.left < 1e-12
    assert change.basis_loss.right > 0.01
    assert change.spectrum_distortion == pytest.approx(0, abs=1e-12)


def test_subspaces_beyond_the_rank_are_left_out() -> None:
    weight = composed(orthonormal(9, 3, 8), VALUES[:3], orthonormal(9, 3, 9))
    change = compare_weights(weight, 2 * weight, top=(1, 3, 4))
    assert [part.k for part in change.subspaces if part.energy is None] == [1, 3]
    assert change.intruders is not None
    assert change.intruders.num_checked == 3


def test_zero_weight_has_a_change_but_no_relative_one() -> None:
    change = compare_weights(torch.zeros(4, 3), torch.ones(4, 3))
    assert change.relative_deviation is None
    assert change.spectrum_distortion is None
    assert change.subspaces == ()
    assert change.basis_loss is None
    assert change.stable_rank == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    out_features=st.integers(2, 9),
    in_features=st.integers(2, 9),
    size=st.floats(1e-3, 2.0),
)
def test_figures_keep_their_ranges_and_do_not_depend_on_the_axes(
    seed: int, out_features: int, in_features: int, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (out_features, in_features)
    weight = torch.randn(shape, dtype=torch.float64, generator=generator)
    after = weight + size * torch.randn(shape, dtype=torch.float64, generator=generator)
    change = compare_weights(weight, after, top=(1, 2))
    assert change.spectrum_distortion is not None and change.relative_deviation is not None
    assert change.spectrum_distortion <= change.relative_deviation + 1e-12
    assert change.effective_rank is not None
    assert 1 <= change.stable_rank <= min(shape) + 1e-9
    assert 1 <= change.effective_rank <= min(shape) + 1e-9
    for part in change.subspaces:
        assert min(part.left_degrees + part.right_degrees) >= 0
        assert max(part.left_degrees + part.right_degrees) <= 90
        assert 0 <= part.left_share <= 1
        assert 0 <= part.right_share <= 1
    left, right = (
        orthonormal(out_features, out_features, seed),
        orthonormal(in_features, in_features, seed + 1),
    )
    turned = compare_weights(left @ weight @ right, left @ after @ right, top=(1, 2))
    assert turned.values_after == pytest.approx(change.values_after)
    assert turned.effective_rank == pytest.approx(change.effective_rank)
    for part, other in zip(change.subspaces, turned.subspaces, strict=True):
        assert other.left_degrees == pytest.approx(part.left_degrees, abs=1e-4)
        assert other.right_share == pytest.approx(part.right_share, abs=1e-6)
    assert change.basis_loss is not None and turned.basis_loss is not None
    assert turned.basis_loss.left == pytest.approx(change.basis_loss.left, abs=1e-6)


@pytest.mark.parametrize(
    ("before", "after", "options", "text"),
    [
        (torch.ones(3), torch.ones(3), {}, r"before: got shape \(3,\)"),
        (torch.ones(0, 3), torch.ones(0, 3), {}, r"before: got shape \(0, 3\)"),
        (torch.ones(3, 2), torch.ones(2, 3), {}, r"after: got shape \(2, 3\), expected \(3, 2\)"),
        (torch.ones(2, 2), torch.full((2, 2), math.nan), {}, r"after: got 4 values that are NaN"),
        (torch.ones(2, 2), torch.ones(2, 2), {"top": (0, 1)}, r"top: got \(0, 1\)"),
        (torch.ones(2, 2), torch.ones(2, 2), {"top": ()}, r"top: got \(\)"),
        (torch.ones(2, 2), torch.ones(2, 2), {"energy": 1.5}, r"energy: got 1\.5"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    before: Tensor, after: Tensor, options: dict, text: str
) -> None:
    with pytest.raises(VituneError, match=text):
        compare_weights(before, after, **options)
