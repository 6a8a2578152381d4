"""Linear probe: only the classifier head, solved on the frozen network's features."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitune.methods.authoring import VituneError
from vitune.methods.probe_authoring import (
    CAUTIOUS,
    HeadProblem,
    Labelled,
    SolvedConfig,
    SolvedHead,
    folds,
)
from vitune.ops import Solution, Standardiser, calibrated_losses, paired, solve_logistic

STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4, 1e-5)
"""The path of penalties, strongest first, so that each solution is the start of the next."""

PRIOR = 0.1
"""The penalty if no image can be held out to choose one."""

PATIENCE = 2
"""The path ends after this many penalties in a row that are worse than the best."""

FEWEST_IMAGES = 200
"""Training images below which folds tell no more about the features than the hold-out."""

ENOUGH_HELD_OUT = 1000
"""Validation images from which on they alone tell how strong the penalty may be."""

MOST_WORK = 2**27
"""Multiplications per pass over the features up to which five more paths are affordable."""

LEAST_SUMMED = 3.0
"""λ times images below which it makes no difference how weak a penalty the features ask for."""

ROUGH = 3e-4
"""Largest gradient entry of the solutions that only tell how well features suit the data."""


@dataclass
class LinearProbeConfig(SolvedConfig):
    """argmin mean CE(W z + b, y) + λ/2 ‖W‖² with z the standardised features: the baseline to beat.

    λ is the one of a path with the lowest validation cross-entropy, each solution at its best
    temperature: a strong penalty makes answers unconfident, which does not make them worse. Without
        validation images 5-fold cross-validation is used instead.

    Args:
        penalty: λ; None chooses it.

    Raises:
        VituneError: a penalty that is not above 0.
    Source: common practice; Kornblith et al. (CVPR 2019) solve it this way.
    """

    penalty: float | None = field(default=None)

    method = "linear"
    title = "Linear probe"
    source = "common practice"
    counts_on_vit_b16 = (({}, 0),)
    stepped = "linear_sgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty is not None and not self.penalty > 0:
            raise VituneError(f"penalty: got {self.penalty!r}, expected a number above 0.")

    def solve(self, problem: HeadProblem) -> SolvedHead:
        """The head at the chosen penalty, fitted to all training features."""
        if self.penalty is not None:
            return _fitted(problem, (self.penalty,), self.penalty, "given", ())
        judged, how = _judgement(problem)
        if not judged:
            return _fitted(problem, (PRIOR,), PRIOR, "prior", ())
        tried, losses = _path(problem, judged)
        best = _best(tried)
        path = tuple(entry["penalty"] for entry in tried[: best + 1])
        head = _fitted(problem, path[-2:], path[-1], how, tuple(tried))
        if problem.groups is not None:  # mirrored copies say nothing new about the features
            return head
        cautious = _cautious(problem, judged, tried, losses)
        return replace(head, chosen={**head.chosen, CAUTIOUS: cautious})


def _cautious(
    problem: HeadProblem,
    judged: list[tuple[Labelled, Labelled]],
    tried: list[dict[str, float]],
    losses: list[Tensor],
) -> float:
    """The strongest λ within one standard error of the best, for the images of training.

    On a hold-out of a few hundred images it differs up to tenfold between splits, so training and
    validation images are cross-validated together where that is affordable. The best λ is in
    inverse proportion to the number of images, and folds have fewer or more than training has.
    """
    joined = _joined(problem)
    pairs = [] if joined is None else _judgement(joined)[0]
    if joined is not None and pairs:
        judged = pairs
        needed = [p for p in STRENGTHS if p * len(problem.train) >= LEAST_SUMMED]
        penalties = STRENGTHS[: len(needed) + 1]
        tried, losses = _path(joined, judged, penalties, ROUGH)
    penalty = tried[_within_one_error(losses, _best(tried))]["penalty"]
    fitted = float(np.mean([len(fit) for fit, _ in judged]))
    return penalty * fitted / len(problem.train)


def _joined(problem: HeadProblem) -> HeadProblem | None:
    """Training and validation images as one; None if they are too few, too many or in a file."""
    train, val = problem.train, problem.val
    if val is None or len(val) >= ENOUGH_HELD_OUT or len(train) < FEWEST_IMAGES:
        return None
    if any(type(part.features) is not np.ndarray for part in (train, val)):
        return None
    if len(train) * train.features.shape[1] * problem.num_classes > MOST_WORK:
        return None
    features = np.concatenate([np.asarray(train.features), np.asarray(val.features)])
    both = Labelled(features, np.concatenate([train.labels, val.labels]))
    return replace(problem, train=both, val=None)


def _best(tried: list[dict[str, float]]) -> int:
    """The place of the lowest loss."""
    return min(range(len(tried)), key=lambda place: tried[place]["loss"])


def _judgement(problem: HeadProblem) -> tuple[list[tuple[Labelled, Labelled]], str]:
    """(fit, judge) pairs for choosing the penalty, and their name."""
    if problem.val is not None and len(problem.val):
        return [(problem.train, problem.val)], "validation"
    pairs = [(problem.train.at(fit), problem.train.at(judge)) for fit, judge in folds(problem)]
    return pairs, f"{len(pairs)}-fold cross-validation"


def _path(
    problem: HeadProblem,
    judged: list[tuple[Labelled, Labelled]],
    penalties: tuple[float, ...] = STRENGTHS,
    tolerance: float = 1e-4,
) -> tuple[list[dict[str, float]], list[Tensor]]:
    """Calibrated cross-entropy and accuracy at each penalty, until it has been worse for a while.

    Returns:
        One entry per penalty, and the losses of the judged images at each.
    """
    standardisers = [Standardiser.of(fit.features) for fit, _ in judged]
    solutions: list[Solution | None] = [None] * len(judged)
    tried: list[dict[str, float]] = []
    losses: list[Tensor] = []
    labels = torch.cat([torch.from_numpy(np.asarray(judge.labels)) for _, judge in judged])
    for penalty in penalties:
        logits = []
        for index, (fit, judge) in enumerate(judged):
            solution = _solve(
                problem, fit, penalty, standardisers[index], solutions[index], tolerance
            )
            solutions[index] = solution
            logits.append(_head(solution, standardisers[index]).logits(judge.features))
        together = torch.cat(logits)
        right = (together.argmax(1) == labels).float().mean().item()
        losses.append(calibrated_losses(together, labels))
        loss = losses[-1].mean().item()
        tried.append({"penalty": penalty, "loss": loss, "accuracy": right})
        if len(tried) - 1 - _best(tried) >= PATIENCE:
            break
    return tried, losses


def _within_one_error(losses: list[Tensor], best: int) -> int:
    """The first penalty whose loss is within one standard error, image by image, of the best."""
    for place in range(best):
        mean, error = paired(losses[place], losses[best])
        if mean <= error:
            return place
    return best


def _head(solution: Solution, standardiser: Standardiser) -> SolvedHead:
    """The solution as a head on raw features."""
    weight, bias = standardiser.folded(solution.weight.cpu(), solution.bias.cpu())
    return SolvedHead(weight.float(), bias.float(), {}, "")


def _solve(
    problem: HeadProblem, fit: Labelled, penalty: float, standardiser: Standardiser,
    start: Solution | None, tolerance: float,
) -> Solution:  # fmt: skip
    return solve_logistic(
        fit.features, fit.labels, problem.num_classes, penalty, standardiser=standardiser,
        start=start, device=problem.device, tolerance=tolerance,
    )  # fmt: skip


def _fitted(
    problem: HeadProblem, path: tuple[float, ...], penalty: float, how: str,
    tried: tuple[dict[str, Any], ...],
) -> SolvedHead:  # fmt: skip
    """The head at `penalty` on all training features, solved along `path`."""
    standardiser = Standardiser.of(problem.train.features)
    solution = None
    for step in path:
        tolerance = 1e-7 if step == penalty else 1e-4
        solution = _solve(problem, problem.train, step, standardiser, solution, tolerance)
    assert solution is not None
    head = _head(solution, standardiser)
    return replace(head, chosen={"penalty": penalty}, how=how, tried=tried)
