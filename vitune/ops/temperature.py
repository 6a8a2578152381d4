"""Temperature scaling: one number that calibrates a classifier's confidence, logits / T."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

RANGE = (0.05, 20.0)
"""The range of temperatures."""

STEPS = 40


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """argmin over T of the mean cross-entropy of logits / T, within RANGE.

    The targets give the true class 1 - 1 / (n + 2) and share the rest among the others: n images
    without a mistake do not mean that none will come. The cross-entropy is convex in 1 / T; its
    derivative in log T is bisected, which needs no learning rate. The order of the classes is kept.

    Shapes: logits (n, c); labels (n,) int64.
    Source: Guo et al., On calibration of modern neural networks (ICML 2017), eq. 9; the targets
        are those of Platt, Probabilistic outputs for support vector machines (1999), section 2.2.
    """
    values, other = _margins(logits, labels)
    low, high = (math.log(end) for end in RANGE)
    for _ in range(STEPS):
        middle = (low + high) / 2
        slope = _slopes(values * math.exp(-middle), other).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return math.exp((low + high) / 2)


def temperature_pulls(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """How far each image pulls log T, its influence on `fit_temperature`.

    The mean is 0 at the fitted temperature, and std / √n is the standard error of log T. An image
    that is wrong with confidence pulls up.

    Shapes: logits (n, c); labels (n,) int64; returns (n,) float64.
    """
    values, other = _margins(logits, labels)
    scaled = values / temperature
    chances, slopes = scaled.softmax(1), _slopes(scaled, other)
    mean = (chances * scaled).sum(1)
    curvature = ((chances * scaled.square()).sum(1) - mean.square() - slopes).mean()
    return -slopes / curvature


def _margins(logits: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Logits less the true class's, and the target of every other class.

    Shapes: logits (n, c); labels (n,) int64; returns (n, c) float64.
    """
    number, num_classes = logits.shape
    values = logits.double()
    other = 1 / (number + 2) / max(1, num_classes - 1)
    return values - values.gather(1, labels[:, None]), other


def _slopes(scaled: Tensor, other: float) -> Tensor:
    """d/d(log T) of log Σ exp(scaled) - Σ target · scaled, which is Σ (target - p) · scaled.

    Shapes: scaled (n, c), margins over T; returns (n,).
    """
    return ((other - scaled.softmax(1)) * scaled).sum(1)


def calibrated_losses(logits: Tensor, labels: Tensor, temperature: float | None = None) -> Tensor:
    """Cross-entropy of each image at a temperature; None finds the best over all images.

    Shapes: logits (n, c); labels (n,) int64; returns (n,) float64.
    """
    scaled = logits.double() / (temperature or fit_temperature(logits, labels))
    return F.cross_entropy(scaled, labels, reduction="none")


def paired(
    first: Tensor, second: Tensor, groups: npt.NDArray[np.int64] | None = None
) -> tuple[float, float]:
    """Mean of first - second, and its standard error; infinite for a single image or group.

    Images of one group are alike, so they say less than as many others. The error is then that of
    G groups instead of n images: √(G/(G-1) · Σ_g (Σ_{i in g} (d_i - mean))²) / n. It is never less
    than that of n images: a few groups have nearly equal sums by chance.

    Shapes: first, second (n,); groups (n,), a number per image, None if each is its own group.
    Source: the cluster-robust variance of a mean; Liang and Zeger (Biometrika 1986).
    """
    difference = first.double() - second.double()
    mean = difference.mean().item() if len(difference) else 0.0
    error = _error_of_mean(difference - mean, len(difference))
    if groups is None:
        return mean, error
    names, place = np.unique(groups, return_inverse=True)
    sums = torch.zeros(len(names), dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(place), difference.cpu() - mean)
    return mean, max(error, _error_of_mean(sums, len(difference)))


def _error_of_mean(deviations: Tensor, num_images: int) -> float:
    """The standard error of a mean over so many images, from their, or their groups', sums (k,)."""
    number = len(deviations)
    if number < 2:
        return math.inf
    return math.sqrt((deviations**2).sum().item() * number / (number - 1)) / num_images


def effective_number(right: Tensor, groups: npt.NDArray[np.int64]) -> float:
    """How many independent images determine a share as well as these, which come in groups.

    n over the design effect: the squared error of `paired` with groups over that without. At least
    1 and at most n. Where all are right or all are wrong, nothing shows how alike a group is: then
    the number of groups.

    Shapes: right (n,) bool; groups (n,), a number per image.
    Source: Korn and Graubard, Confidence intervals for proportions with small expected number of
        positive counts estimated from survey data (Survey Methodology 1998).
    """
    correct = right.double()
    nothing = torch.zeros_like(correct)
    (share, error), (_, alone) = paired(correct, nothing, groups), paired(correct, nothing)
    if share in (0.0, 1.0) or error == 0:
        return float(len(np.unique(groups)))
    return min(float(len(right)), max(1.0, len(right) * (alone / error) ** 2))


def expected_calibration_error(logits: Tensor, labels: Tensor, num_bins: int = 15) -> float:
    """Σ share of a bin · |its accuracy - its mean confidence|, over equal bins of confidence.

    Shapes: logits (n, c); labels (n,) int64.
    Source: Guo et al. (ICML 2017), eq. 3.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    correct = (predicted == labels).double()
    return float(_binned(correct - confidence, confidence, num_bins).abs().sum() / len(labels))


def calibration_error_by_chance(logits: Tensor, num_bins: int = 15) -> float:
    """The calibration error to be expected on these images if every confidence were true.

    It is not 0: where images are right with the probability p that they are given, the number of
    right ones in a bin has the variance Σ p (1 - p), and the distance from its mean is on average
    √(2 / π) times its root.

    Shapes: logits (n, c).
    Deviation: the number of right images is taken to be normally distributed. From 60 images on
        that is within a twentieth of what a simulation gives.
    """
    confidence = logits.double().softmax(1).max(1).values
    variances = _binned(confidence * (1 - confidence), confidence, num_bins)
    return float((2 / math.pi * variances).sqrt().sum() / len(logits))


def _binned(values: Tensor, confidence: Tensor, num_bins: int) -> Tensor:
    """The sum of the values in each bin of confidence. Shapes: values (n,); returns (num_bins,)."""
    bins = (confidence * num_bins).long().clamp(max=num_bins - 1)
    return values.new_zeros(num_bins).index_add_(0, bins, values)
