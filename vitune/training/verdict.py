"""The final verdict of validation: a temperature, and whether adapting beat the probe."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vitune.ops import (
    calibrated_losses,
    calibration_error_by_chance,
    expected_calibration_error,
    fit_temperature,
    paired,
    temperature_pulls,
)
from vitune.runs import Calibration, Verdict
from vitune.training.probing import Probe


def compare(
    probe: Probe, logits: Tensor, labels: Tensor, share: float | None = None
) -> Verdict | None:
    """The verdict on validation; None if the probe was not scored there.

    Args:
        share: position of the weights on the line from the probe (0) to the trained ones. At 0 the
            network is the probe, and what rounding makes of it is neither gain nor loss.

    Shapes: logits (n, c) of the adapted network; labels (n,) int64.
    """
    if len(probe.right) != len(labels) or not len(labels):
        return None
    if share == 0:
        accuracy = float(probe.right.mean())
        return Verdict(accuracy, accuracy, 0.0, 0.0, 0.0, 0.0, len(labels))
    right = (logits.argmax(1) == labels).double()
    gain, error = paired(right, torch.from_numpy(probe.right), probe.groups)
    losses = calibrated_losses(logits, labels)
    loss_gain, loss_error = paired(torch.from_numpy(probe.losses), losses, probe.groups)
    return Verdict(
        right.mean().item(),
        float(probe.right.mean()),
        gain,
        _finite(error),
        loss_gain,
        _finite(loss_error),
        len(labels),
    )


def calibration(
    seen: tuple[Tensor, Tensor] | None,
    otherwise: float | None = None,
    probe: Probe | None = None,
) -> Calibration:
    """The temperature on validation with the calibration error before and after.

    A few hundred validation images are by chance easier or harder than others. What
    cross-validation says of that for the probe also corrects the temperature of an adapted network,
    as far as the same images pull both: a control variate.

    Args:
        otherwise: the temperature if there is no validation; None means 1.
        probe: the run's, scored on the same images.
    """
    if seen is None or not len(seen[1]):
        return Calibration(otherwise or 1.0)
    logits, labels = seen
    temperature = fit_temperature(logits, labels)
    if probe is not None:
        pulls = temperature_pulls(logits, labels, temperature).numpy()
        temperature *= probe.sample_ratio ** _shared(pulls, probe.pulls)
    return Calibration(
        temperature,
        expected_calibration_error(logits, labels),
        expected_calibration_error(logits / temperature, labels),
        calibration_error_by_chance(logits / temperature),
    )


def _shared(pulls: np.ndarray, probe_pulls: np.ndarray) -> float:
    """The slope of a network's pulls on the probe's, within [0, 1]; 0 if they cannot be compared.

    Shapes: (n,) each.
    """
    if len(pulls) != len(probe_pulls) or len(pulls) < 2:
        return 0.0
    covariance, variance = np.cov(pulls, probe_pulls)[1]
    return float(np.clip(covariance / variance, 0, 1)) if variance > 0 else 0.0


def _finite(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return value if math.isfinite(value) else None
