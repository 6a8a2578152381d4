"""The randomised decomposition against the exact one, and the error that it states."""

from __future__ import annotations

import math

import pytest
import torch
from analysis_matrices import composed, orthonormal

from vitune.analysis import IntruderRule, compare_weights
from vitune.analysis.decomposition import decompose, decompose_top, singular_values


def decaying(seed: int) -> torch.Tensor:
    values = 0.8 ** torch.arange(40, dtype=torch.float64)
    return composed(orthonormal(60, 40, seed), values, orthonormal(40, 40, seed + 1))


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6)])
def test_exact_decomposition_is_thin_and_gives_the_matrix_back(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    svd = decompose(matrix)
    assert (svd.left.shape, svd.right.shape) == ((shape[0], min(shape)), (shape[1], min(shape)))
    torch.testing.assert_close(svd.left @ torch.diag(svd.values) @ svd.right.T, matrix)
    torch.testing.assert_close(singular_values(matrix), svd.values)
    assert svd.total_energy == pytest.approx(float(svd.values.square().sum()))
    assert svd.rank == min(shape)


def test_randomised_agrees_with_exact_on_a_decaying_spectrum() -> None:
    before = decaying(seed=10)
    after = before + 0.01 * torch.randn(60, 40, dtype=torch.float64)
    exact = compare_weights(before, after, top=(1, 8))
    rough = compare_weights(before, after, top=(1, 8), exact_limit=8)
    assert exact.exact and not rough.exact
    assert rough.values_error is not None and rough.values_error < 1e-6
    assert rough.values_after == pytest.approx(exact.values_after[:11], rel=1e-6)
    assert rough.relative_deviation == pytest.approx(exact.relative_deviation)
    assert rough.stable_rank == pytest.approx(exact.stable_rank, rel=1e-3)
    for k in (1, 8):
        seen, true = rough.subspace(k), exact.subspace(k)
        assert seen is not None and true is not None
        assert seen.error_degrees is not None and seen.error_degrees < 1e-3
        assert seen.left_degrees == pytest.approx(true.left_degrees, abs=1e-3)
        assert seen.right_share == pytest.approx(true.right_share, abs=1e-5)


def test_figures_of_the_whole_spectrum_are_absent_where_it_was_not_computed() -> None:
    change = compare_weights(decaying(1), decaying(2), top=(1, 4), exact_limit=8)
    assert change.spectrum_distortion is None
    assert change.effective_rank is None
    assert len(change.values_before) == 11, "the intruders' ten and one more"


def test_energy_is_reported_by_the_randomised_path_only_where_it_is_reached() -> None:
    before, after = decaying(3), 1.5 * decaying(3)
    assert compare_weights(before, after, top=(8,), exact_limit=8).subspaces[-1].energy == 0.9
    few = IntruderRule(num_vectors=2)
    short = compare_weights(before, after, top=(2,), exact_limit=8, intruders=few)
    assert [part.energy for part in short.subspaces] == [None]
    assert short.basis_loss is None


def test_a_flat_spectrum_is_admitted_to_be_uncertain() -> None:
    torch.manual_seed(3)
    before = torch.randn(300, 300, dtype=torch.float64)
    after = before + 0.3 * torch.randn(300, 300, dtype=torch.float64)
    exact = compare_weights(before, after, top=(8,)).subspace(8)
    rough = compare_weights(before, after, top=(8,), exact_limit=8).subspace(8)
    assert exact is not None and rough is not None and rough.error_degrees is not None
    wrong = max(abs(a - b) for a, b in zip(exact.left_degrees, rough.left_degrees, strict=True))
    assert wrong <= rough.error_degrees
    assert rough.error_degrees > 0.1


def test_residuals_bound_the_distance_of_every_value_from_a_true_one() -> None:
    torch.manual_seed(4)
    matrix = torch.randn(200, 120, dtype=torch.float64)
    svd = decompose_top(matrix, 5)
    true = torch.linalg.svdvals(matrix)
    distance = (svd.values[:, None] - true).abs().amin(1)
    assert (distance <= svd.residuals + 1e-12).all()
    for index in range(5):
        u, v, value = svd.left[:, index], svd.right[:, index], svd.values[index]
        both = torch.cat([matrix @ v - value * u, matrix.T @ u - value * v])
        assert float(svd.residuals[index]) == pytest.approx(float(both.norm()), abs=1e-9)


def test_seed_decides_and_the_global_random_state_is_left_alone() -> None:
    matrix = torch.randn(80, 70, dtype=torch.float64)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = decompose_top(matrix, 3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    again, other = decompose_top(matrix, 3, seed=1), decompose_top(matrix, 3, seed=2)
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.left, other.left)


def test_rank_and_gap_of_known_values() -> None:
    matrix = composed(orthonormal(6, 3, 1), torch.tensor([4.0, 2.0, 1.0]), orthonormal(5, 3, 2))
    svd = decompose(matrix)
    assert svd.rank == 3
    assert svd.gap(1) == pytest.approx(2)
    assert svd.gap(5) == pytest.approx(0, abs=1e-12)
    assert svd.energy_rank(16 / 21) == 1
    assert svd.energy_rank(1.0) == 3
    empty = decompose(torch.zeros(3, 2))
    assert (empty.rank, empty.energy_rank(0.9)) == (0, None)
    assert not math.isnan(empty.gap(1))
