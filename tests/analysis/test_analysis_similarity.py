"""Linear CKA against its definition, its invariances and its known values."""

from __future__ import annotations

import pytest
import torch
from analysis_matrices import orthonormal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitune.analysis import linear_cka
from vitune.errors import VituneError


def features(num_images: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_images, width, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("num_images", [5, 50])
def test_identical_features_have_cka_one(num_images: int, debiased: bool) -> None:
    x = features(num_images, 12, 0)
    assert linear_cka(x, x, debiased=debiased) == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_images=st.integers(8, 30),
    scale=st.floats(0.01, 100),
    shift=st.floats(-10, 10),
    debiased=st.booleans(),
)
def test_rotation_scale_and_shift_do_not_matter(
    seed: int, num_images: int, scale: float, shift: float, debiased: bool
) -> None:
    x, y = features(num_images, 6, seed), features(num_images, 4, seed + 1)
    y = y + x[:, :4]
    turned = scale * x @ orthonormal(6, 6, seed) + shift
    value = linear_cka(x, y, debiased=debiased)
    assert linear_cka(turned, y, debiased=debiased) == pytest.approx(value, abs=1e-8)
    assert linear_cka(y, x, debiased=debiased) == pytest.approx(value, abs=1e-10)


def test_both_forms_equal_the_definition_with_centred_gram_matrices() -> None:
    for num_images in (7, 40):
        x, y = features(num_images, 15, 1), features(num_images, 9, 2)
        y[:, :3] += x[:, :3]
        centre = torch.eye(num_images, dtype=torch.float64) - 1 / num_images
        k, l_ = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
        expected = float((k * l_).sum() / (k.norm() * l_.norm()))
        assert linear_cka(x, y) == pytest.approx(expected)


def test_independent_features_are_near_zero_with_many_images_and_debiased_with_few() -> None:
    assert linear_cka(features(4000, 10, 3), features(4000, 10, 4)) < 0.02
    few = [
        (linear_cka(x, y), linear_cka(x, y, debiased=True))
        for x, y in ((features(40, 60, seed), features(40, 60, seed + 500)) for seed in range(20))
    ]
    assert min(plain for plain, _ in few) > 0.4, "the plain estimate is biased"
    assert abs(sum(debiased for _, debiased in few) / 20) < 0.05


def test_orthogonal_parts_share_the_known_amount() -> None:
    """X = [a, b], Y = a with a, b uncorrelated of equal energy: CKA = 1 / sqrt(2)."""
    basis = orthonormal(30, 30, 5)
    ones = torch.ones(30, 1, dtype=torch.float64) / 30**0.5
    centred = torch.linalg.qr(torch.cat([ones, basis[:, :4]], 1)).Q[:, 1:]
    a, b = centred[:, :1], centred[:, 1:2]
    assert linear_cka(torch.cat([a, b], 1), a) == pytest.approx(0.5**0.5)
    assert linear_cka(a, b) == pytest.approx(0, abs=1e-12)


def test_features_that_do_not_vary_have_no_cka() -> None:
    constant = torch.full((6, 3), 0.1)
    assert linear_cka(constant, features(6, 3, 1)) is None
    assert linear_cka(features(6, 3, 1), constant, debiased=True) is None


def test_images_must_match_and_suffice() -> None:
    with pytest.raises(VituneError, match=r"features: got 5 and 6 images"):
        linear_cka(features(5, 2, 0), features(6, 2, 0))
    with pytest.raises(VituneError, match=r"features: got 1 and 1 images.*at least 2"):
        linear_cka(features(1, 2, 0), features(1, 2, 0))
    with pytest.raises(VituneError, match=r"at least 4"):
        linear_cka(features(3, 2, 0), features(3, 2, 0), debiased=True)
