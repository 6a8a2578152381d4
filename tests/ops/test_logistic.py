"""The solver against scikit-learn, a known optimum and itself in chunks; temperatures known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from vitune.ops.logistic import Curvature, Standardiser, solve_logistic
from vitune.ops.temperature import (
    RANGE,
    calibrated_losses,
    calibration_error_by_chance,
    expected_calibration_error,
    fit_temperature,
)


def ground(rows: int = 300, width: int = 20, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Features of very unequal scales, one of them constant, and noisy labels."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(rows, width)) * rng.uniform(0.01, 50, width) + 3
    features[:, 5] = 7.0
    scores = features[:, :4] / features[:, :4].std(0) @ rng.normal(size=(4, classes))
    labels = (scores + rng.normal(size=(rows, classes))).argmax(1)
    return features, labels


@pytest.mark.parametrize("penalty", [1.0, 0.03, 1e-3])
def test_the_coefficients_are_scikit_learn_s(penalty: float) -> None:
    features, labels = ground()
    standardiser = Standardiser.of(features)
    inputs = standardiser(torch.from_numpy(features)).numpy()
    assert np.isfinite(inputs).all() and not inputs[:, 5].any()
    found = solve_logistic(features, labels, 4, penalty, standardiser=standardiser)
    strength = 1 / (penalty * len(labels))
    expected = LogisticRegression(C=strength, max_iter=5000, tol=1e-9).fit(inputs, labels)
    assert found.converged
    np.testing.assert_allclose(found.weight.numpy(), expected.coef_, atol=1e-4)
    centred = found.bias - found.bias.mean()
    expected_bias = expected.intercept_ - expected.intercept_.mean()
    np.testing.assert_allclose(centred.numpy(), expected_bias, atol=1e-4)


def test_the_gradient_is_zero_at_the_solution() -> None:
    """Autograd knows nothing of our closed form."""
    features, labels = ground()
    found = solve_logistic(features / 50, labels, 4, 0.01)
    weight, bias = (value.clone().requires_grad_() for value in (found.weight, found.bias))
    inputs, targets = torch.from_numpy(features / 50), torch.from_numpy(labels)
    loss = F.cross_entropy(inputs @ weight.T + bias, targets) + 0.005 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None and weight.grad.abs().max() < 1e-5
    assert loss.item() == pytest.approx(found.loss, rel=1e-12)


def test_chunks_of_a_file_give_the_same_solution(tmp_path: Path) -> None:
    features, labels = ground()
    on_disk = np.memmap(tmp_path / "f.bin", np.float64, "w+", shape=features.shape)
    on_disk[:] = features
    whole, parts = Standardiser.of(features), Standardiser.of(on_disk, chunk=17)
    torch.testing.assert_close(parts.scale, whole.scale)
    one = solve_logistic(features, labels, 4, 0.01, standardiser=whole)
    many = solve_logistic(on_disk, labels, 4, 0.01, standardiser=parts, chunk=17)
    torch.testing.assert_close(many.weight, one.weight, atol=1e-6, rtol=0)
    warm = solve_logistic(features, labels, 4, 0.01, standardiser=whole, start=one)
    assert warm.num_passes < one.num_passes


def test_principal_axes_change_the_way_and_not_the_solution(tmp_path: Path) -> None:
    """Features whose variances fall a thousandfold, as a network's do, and one exact copy."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(400, 40))
    labels = (hidden[:, 10:13] + 0.5 * rng.normal(size=(400, 3))).argmax(1)
    features = (hidden * np.geomspace(1, 0.03, 40)) @ rng.normal(size=(40, 40))
    features[:, 7] = features[:, 8]
    standardiser = Standardiser.of(features)
    plain = solve_logistic(features, labels, 3, 1e-3, standardiser=standardiser)
    curvature = Curvature.of(features, standardiser)
    near = solve_logistic(features, labels, 3, 1e-3, standardiser=standardiser, curvature=curvature)
    assert plain.converged and near.converged
    torch.testing.assert_close(near.weight, plain.weight, atol=1e-4, rtol=0)
    assert near.num_passes < 0.7 * plain.num_passes
    on_disk = np.memmap(tmp_path / "f.bin", np.float64, "w+", shape=features.shape)
    on_disk[:] = features
    of_part = Curvature.of(on_disk[100:], standardiser)  # of other images than it is used for
    warm = solve_logistic(
        features, labels, 3, 1e-3, standardiser=standardiser, curvature=of_part, start=near
    )
    assert warm.converged and warm.num_passes < 3


def test_axes_are_not_sought_where_images_are_fewer_than_features() -> None:
    assert Curvature.of(np.ones((10, 20))) is None


def test_the_folded_map_reads_raw_features() -> None:
    features, labels = ground()
    standardiser = Standardiser.of(features)
    found = solve_logistic(features, labels, 4, 0.1, standardiser=standardiser)
    weight, bias = standardiser.folded(found.weight, found.bias)
    raw = torch.from_numpy(features)
    expected = standardiser(raw) @ found.weight.T + found.bias
    torch.testing.assert_close(raw @ weight.T + bias, expected)


def test_more_classes_than_images_of_some() -> None:
    """A class without an image gets a low bias and no trouble."""
    features, labels = ground(classes=3)
    found = solve_logistic(features, labels, 5, 0.1, standardiser=Standardiser.of(features))
    assert torch.isfinite(found.weight).all()
    assert found.bias[3:].max() < found.bias[:3].min()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_temperature_that_was_put_in_is_found(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(20_000, 6, generator=generator) * 2
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
    logits = honest * temperature
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    assert expected_calibration_error(logits / found, labels) < 0.02
    plain = F.cross_entropy(logits.double(), labels).item()
    assert calibrated_losses(logits, labels).mean() <= plain + 1e-9


@pytest.mark.parametrize("number", [60, 250, 2000])
def test_what_true_confidences_show_by_chance(number: int) -> None:
    """Labels are drawn from the very probabilities, so that all of the error is chance."""
    generator = torch.Generator().manual_seed(number)
    logits = torch.randn(number, 6, generator=generator) * 2
    drawn = torch.multinomial(logits.softmax(1), 2000, replacement=True, generator=generator)
    errors = [expected_calibration_error(logits, labels) for labels in drawn.T]
    expected = sum(errors) / len(errors)
    assert calibration_error_by_chance(logits) == pytest.approx(expected, rel=0.05)


def test_a_temperature_stays_in_range_where_all_or_nothing_is_right() -> None:
    """20 images without a mistake: the next one is wrong with a chance of 1 in 22, not of 0."""
    logits = torch.eye(4).repeat(5, 1)
    labels = torch.arange(4).repeat(5)
    found = fit_temperature(logits, labels)
    assert (logits / found).softmax(1).max(1).values == pytest.approx([21 / 22] * 20, rel=1e-3)
    assert fit_temperature(1e-9 * logits, labels) == pytest.approx(RANGE[0], rel=1e-3)
    assert fit_temperature(logits, (labels + 1) % 4) == pytest.approx(RANGE[1], rel=1e-3)
