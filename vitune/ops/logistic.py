"""Multinomial logistic regression with an L2 penalty, solved by L-BFGS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHUNK_VALUES = 2**25
"""Values per chunk of features or logits in memory at a time (128 MiB in float32)."""

MAX_EXACT = 2**31
"""Multiplications per pass up to which a CPU solves in float64; above, float32 will do."""

MAX_CURVED = 2048
"""Features up to which their principal axes are worth finding; the work grows with the cube."""

ROWS_PER_FEATURE = 4
"""Images per feature that suffice for axes that only have to be about right."""

CONFIDENCE = 0.3
"""Mean p (1 - p) of a fitted classifier's answers, relative to its start at p = 1 / c."""


@dataclass(frozen=True)
class Standardiser:
    """x ← (x - mean) / scale, feature by feature.

    Shapes: mean, scale (d,) float64; scale is 1 if a feature never varies.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, features: Any, chunk: int | None = None) -> Standardiser:
        """From the rows of `features`, read in chunks; two passes, to avoid cancellation.

        Shapes: features (n, d), a NumPy array, a memory map or a tensor.
        """
        rows, width = features.shape
        mean, square = torch.zeros(width, dtype=torch.float64), torch.zeros(width).double()
        for part in row_chunks(features, width, chunk):
            mean += part.double().sum(0) / rows
        for part in row_chunks(features, width, chunk):
            square += (part.double() - mean).square().sum(0) / rows
        scale = square.sqrt()
        constant = scale <= 1e-10 * mean.abs().clamp(min=1e-30)
        return cls(mean, torch.where(constant, torch.ones_like(scale), scale))

    def __call__(self, features: Tensor) -> Tensor:
        """The standardised features, in their own dtype and on their own device."""
        mean, scale = self.mean.to(features), self.scale.to(features)
        return (features - mean) / scale

    def folded(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The linear map on raw features that equals (weight, bias) on standardised ones.

        Shapes: weight (c, d); bias (c,).
        """
        raw = weight / self.scale.to(weight)
        return raw, bias - raw @ self.mean.to(weight)


@dataclass(frozen=True)
class Curvature:
    """The principal axes of standardised features, in whose coordinates a solution is near.

    The Hessian of the objective is about p (1 - p) · cov(x) + λ for every class. Measured along the
    axes of cov(x) in units of its square root, all directions are about equally steep, and L-BFGS
    takes a third to two thirds of the steps. It changes the way, not the solution, so axes of a
    part of the images, or of nearly the same images, will do.

    Shapes: axes (d, d), one per column; variances (d,) along them; both float64.
    """

    axes: Tensor
    variances: Tensor

    @classmethod
    def of(cls, features: Any, standardiser: Standardiser | None = None) -> Curvature | None:
        """From evenly spaced rows; None if there are more features than rows, or too many.

        Shapes: features (n, d), a NumPy array, a memory map or a tensor.
        """
        rows, width = features.shape
        if width > min(rows, MAX_CURVED):
            return None
        some = features[:: max(1, rows // (ROWS_PER_FEATURE * width))]
        covariance = torch.zeros(width, width, dtype=torch.float64)
        for part in row_chunks(some, width):
            values = part.cpu().double()
            values = values if standardiser is None else standardiser(values)
            covariance.addmm_(values.T, values, alpha=1 / len(some))
        variances, axes = torch.linalg.eigh(covariance)
        return cls(axes, variances.clamp(min=0))


class Coordinates:
    """Where the solver moves: z with (W, b) = `weights(z)`, linear in z."""

    def __init__(self, curvature: Curvature | None, penalty: float, like: Tensor) -> None:
        """`like`: parameters [W, b], (c, d + 1), for the shape, dtype and device."""
        self._axes = None if curvature is None else curvature.axes.to(like)
        self._units = torch.ones_like(like[0])
        if curvature is not None:
            steepness = torch.cat([curvature.variances, torch.ones(1)])  # b: a constant feature
            steepness *= CONFIDENCE / len(like)
            steepness[:-1] += penalty
            self._units = steepness.rsqrt().to(like)

    def weights(self, z: Tensor) -> Tensor:
        """[W, b] of a place. Shapes: (c, d + 1) both."""
        return self._turned(z * self._units, back=True)

    def place(self, weights: Tensor) -> Tensor:
        """The z of [W, b]."""
        return self._turned(weights, back=False) / self._units

    def slope(self, gradient: Tensor) -> Tensor:
        """The gradient in z from that in [W, b]."""
        return self._turned(gradient, back=False) * self._units

    def _turned(self, rows: Tensor, *, back: bool) -> Tensor:
        if self._axes is None:
            return rows
        axes = self._axes.T if back else self._axes
        return torch.cat([rows[:, :-1] @ axes, rows[:, -1:]], 1)


@dataclass(frozen=True)
class Solution:
    """A solved classifier on standardised features.

    Args:
        loss: the objective at the solution, penalty included.
        num_passes: over the features.
        converged: False if the iterations ran out first.

    Shapes: weight (c, d); bias (c,).
    """

    weight: Tensor
    bias: Tensor
    loss: float
    num_passes: int
    converged: bool


def solve_logistic(
    features: Any,
    labels: Any,
    num_classes: int,
    penalty: float,
    *,
    standardiser: Standardiser | None = None,
    curvature: Curvature | None = None,
    start: Solution | None = None,
    device: torch.device | str = "cpu",
    max_iterations: int = 500,
    tolerance: float = 1e-7,
    chunk: int | None = None,
) -> Solution:
    """argmin over W, b of mean_i CE(W x_i + b, y_i) + penalty / 2 · ‖W‖².

    The same problem as scikit-learn's `LogisticRegression(C=1 / (penalty · n))`; b is not
    penalised. The sum over images is taken chunk by chunk, so features may be a memory map larger
    than memory. The arithmetic is float64 on a CPU while a pass is short, else float32.

    Args:
        penalty: above 0.
        standardiser: applied to every chunk; None leaves the features unchanged.
        curvature: of the standardised features, to get there in fewer passes.
        start: a solution for another penalty to start from.
        tolerance: largest gradient entry at which the solution is accepted.
        chunk: images per chunk; None chooses.

    Shapes: features (n, d); labels (n,) integers in 0..num_classes - 1.
    Source: Liu and Nocedal, On the limited memory BFGS method (1989); strong Wolfe line search.
    """
    rows, width = features.shape
    target = torch.device(device)
    exact = target.type == "cpu" and rows * width * num_classes <= MAX_EXACT
    dtype = torch.float64 if exact else torch.float32
    if not exact:
        tolerance = max(tolerance, 1e-5)
    prepared = _prepared(features, labels, standardiser, max(width, num_classes), chunk, target,
                         dtype)  # fmt: skip
    weights = torch.zeros(num_classes, width + 1, dtype=dtype, device=target)
    if start is not None:
        weights.copy_(torch.cat([start.weight, start.bias[:, None]], 1))
    coordinates = Coordinates(curvature, penalty, weights)
    place = coordinates.place(weights).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [place],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        history_size=20,
        tolerance_grad=0.0,  # it would be one in the coordinates of `place`
        tolerance_change=1e-12 if exact else 1e-9,
        line_search_fn="strong_wolfe",
    )
    passes = 0

    @torch.no_grad()
    def here() -> _Point:
        nonlocal passes
        passes += 1
        weights = coordinates.weights(place)
        return _Point(weights, *_loss_and_gradient(weights, prepared, rows, penalty))

    def closure() -> float:
        point = here()
        if point.steepest <= tolerance:
            raise _Arrived(point)
        place.grad = coordinates.slope(point.gradient)
        return point.loss

    try:
        optimiser.step(closure)
        final = here()
    except _Arrived as arrived:
        final = arrived.point
    return Solution(
        final.weights[:, :-1].clone(),
        final.weights[:, -1].clone(),
        final.loss,
        passes,
        converged=final.steepest <= 100 * tolerance,
    )


@dataclass(frozen=True)
class _Point:
    """The objective at [W, b]. Shapes: weights, gradient (c, d + 1)."""

    weights: Tensor
    loss: float
    gradient: Tensor

    @property
    def steepest(self) -> float:
        return self.gradient.abs().max().item()


class _Arrived(Exception):  # noqa: N818 - not an error
    """Ends a search at a point that is flat enough."""

    def __init__(self, point: _Point) -> None:
        self.point = point


Prepared = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def _prepared(
    features: Any, labels: Any, standardiser: Standardiser | None, width: int,
    chunk: int | None, device: torch.device, dtype: torch.dtype,
) -> Prepared:  # fmt: skip
    """Chunks of standardised features and labels; kept on the device if there is only one chunk."""
    classes = torch.as_tensor(np.asarray(labels), dtype=torch.int64)

    def read() -> Iterator[tuple[Tensor, Tensor]]:
        first = 0
        for part in row_chunks(features, width, chunk):
            own = classes[first : first + len(part)].to(device)
            first += len(part)
            values = part.to(device=device, dtype=dtype)
            yield (values if standardiser is None else standardiser(values)), own

    if len(features) <= _chunk_rows(width, chunk):
        kept = list(read())
        return lambda: iter(kept)
    return read


def _loss_and_gradient(
    parameters: Tensor, prepared: Prepared, rows: int, penalty: float
) -> tuple[float, Tensor]:
    """The objective and its gradient in closed form: (softmax(XWᵀ + b) - Y)ᵀ [X, 1] / n."""
    weight, bias = parameters[:, :-1], parameters[:, -1]
    gradient = torch.zeros_like(parameters)
    total = 0.0
    for values, labels in prepared():
        logits = torch.addmm(bias, values, weight.T)  # (k, c)
        log_probabilities = logits.log_softmax(1)
        picked = log_probabilities.gather(1, labels[:, None])
        total -= picked.sum(dtype=torch.float64).item()
        error = log_probabilities.exp_()  # (k, c)
        error[torch.arange(len(labels), device=error.device), labels] -= 1
        gradient[:, :-1].addmm_(error.T, values)
        gradient[:, -1] += error.sum(0)
    gradient /= rows
    gradient[:, :-1].add_(weight, alpha=penalty)
    loss = total / rows + penalty / 2 * weight.square().sum(dtype=torch.float64).item()
    return loss, gradient


def _chunk_rows(width: int, chunk: int | None) -> int:
    return chunk or max(1, CHUNK_VALUES // max(1, width))


def row_chunks(features: Any, width: int, chunk: int | None = None) -> Iterator[Tensor]:
    """The rows of an array, a memory map or a tensor, a chunk at a time.

    Args:
        width: values that one row takes, here or in what is computed from it.
        chunk: rows per chunk; None chooses.
    """
    size = _chunk_rows(width, chunk)
    for start in range(0, len(features), size):
        part = features[start : start + size]
        yield part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
