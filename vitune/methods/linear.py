"""Linear probe: only the classifier head, solved on the frozen network's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from vitune.methods.authoring import VituneError
from vitune.methods.probe_authoring import (
    CAUTIOUS,
    SAMPLE_RATIO,
    HeadProblem,
    Labelled,
    SolvedConfig,
    SolvedHead,
    folds,
)
from vitune.ops import (
    Curvature,
    Solution,
    Standardiser,
    calibrated_losses,
    fit_temperature,
    paired,
    solve_logistic,
)

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

CLOSE = 3e-5
"""Largest gradient entry of the solutions that a penalty is chosen by."""

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
        solver = _Solver.of(problem)
        if self.penalty is not None:
            return solver.fitted((self.penalty,), "given")
        judged, how = _judgement(problem)
        if not judged:
            return solver.fitted((PRIOR,), "prior")
        path = solver.path(judged)
        head = solver.fitted(STRENGTHS[: path.best + 1][-2:], how, tuple(path.tried))
        if problem.num_views > 1:  # mirrored copies say nothing new about the features
            return head
        return replace(head, chosen={**head.chosen, **solver.told_of_features(judged, path)})


@dataclass(frozen=True)
class _Path:
    """What one penalty after the other gave on images that chose none of the solutions.

    Args:
        tried: one entry per penalty, with "loss" (calibrated cross-entropy), "accuracy" and the
            "temperature" that calibrates.
        losses: those of the single images at each penalty.
        groups: of these images, if they are known.
    """

    tried: list[dict[str, float]]
    losses: list[Tensor]
    groups: np.ndarray | None = None

    @property
    def best(self) -> int:
        """The place of the lowest loss."""
        return min(range(len(self.tried)), key=lambda place: self.tried[place]["loss"])

    @property
    def has_passed(self) -> bool:
        """Whether the losses have been worse than the best for a while."""
        return len(self.tried) - 1 - self.best >= PATIENCE

    @property
    def within_one_error(self) -> float:
        """The strongest penalty whose loss is within one standard error of the best."""
        best = self.best
        for place in range(best):
            mean, error = paired(self.losses[place], self.losses[best], self.groups)
            if mean <= error:
                return self.tried[place]["penalty"]
        return self.tried[best]["penalty"]

    def temperature_over(self, other: _Path) -> float:
        """Its temperature over the other's, at the penalty that is best for it of those in both."""
        place = min(self.best, len(other.tried) - 1)
        return self.tried[place]["temperature"] / other.tried[place]["temperature"]


@dataclass(frozen=True)
class _Solver:
    """Solves heads of one problem; all its subsets of images are curved alike."""

    problem: HeadProblem
    standardiser: Standardiser
    curvature: Curvature | None

    @classmethod
    def of(cls, problem: HeadProblem) -> _Solver:
        features = problem.train.features
        standardiser = Standardiser.of(features)
        return cls(problem, standardiser, Curvature.of(features, standardiser))

    def path(
        self,
        judged: list[tuple[Labelled, Labelled]],
        penalties: tuple[float, ...] = STRENGTHS,
        tolerance: float = CLOSE,
    ) -> _Path:
        """Solutions fitted to the first part of each pair and judged on the second."""
        standardisers = [
            self.standardiser if fit is self.problem.train else Standardiser.of(fit.features)
            for fit, _ in judged
        ]
        solutions: list[Solution | None] = [None] * len(judged)
        labels = torch.cat([torch.from_numpy(np.asarray(judge.labels)) for _, judge in judged])
        path = _Path([], [], _groups([judge for _, judge in judged]))
        for penalty in penalties:
            logits = []
            for index, (fit, judge) in enumerate(judged):
                solution = self._solve(
                    fit, penalty, standardisers[index], solutions[index], tolerance
                )
                solutions[index] = solution
                logits.append(_head(solution, standardisers[index]).logits(judge.features))
            together = torch.cat(logits)
            right = (together.argmax(1) == labels).float().mean().item()
            temperature = fit_temperature(together, labels)
            path.losses.append(calibrated_losses(together, labels, temperature))
            path.tried.append({
                "penalty": penalty,
                "loss": path.losses[-1].mean().item(),
                "accuracy": right,
                "temperature": temperature,
            })  # fmt: skip
            if path.has_passed:
                break
        return path

    def told_of_features(
        self, judged: list[tuple[Labelled, Labelled]], path: _Path
    ) -> dict[str, float]:
        """CAUTIOUS, and SAMPLE_RATIO where training and validation are cross-validated together.

        CAUTIOUS is the strongest λ within one standard error of the best, for the images of
        training. On a hold-out of a few hundred images it differs up to tenfold between splits, so
        both parts are cross-validated together where that is affordable. The best λ is in inverse
        proportion to the number of images, and folds have fewer or more than training has. Copies
        of an image count once: λ times all images is what it would be without them.
        """
        problem, num_train = self.problem, len(self.problem.train)
        told = {}
        if (joint := _joint(problem)) and (pairs := _folded(joint)):
            needed = [p for p in STRENGTHS if p * num_train >= LEAST_SUMMED]
            held_out, path = path, self.path(pairs, STRENGTHS[: len(needed) + 1], ROUGH)
            problem, judged = joint, pairs
            told[SAMPLE_RATIO] = path.temperature_over(held_out)
        fitted = float(np.mean([len(fit) for fit, _ in judged])) * problem.share_distinct
        return {CAUTIOUS: path.within_one_error * fitted / num_train, **told}

    def fitted(
        self, path: tuple[float, ...], how: str, tried: tuple[dict[str, float], ...] = ()
    ) -> SolvedHead:
        """The head at the last penalty of `path`, on all training features."""
        penalty, solution = path[-1], None
        for step in path:
            tolerance = 1e-7 if step == penalty else ROUGH
            solution = self._solve(self.problem.train, step, self.standardiser, solution, tolerance)
        assert solution is not None
        head = _head(solution, self.standardiser)
        return replace(head, chosen={"penalty": penalty}, how=how, tried=tried)

    def _solve(
        self, fit: Labelled, penalty: float, standardiser: Standardiser, start: Solution | None,
        tolerance: float,
    ) -> Solution:  # fmt: skip
        return solve_logistic(
            fit.features, fit.labels, self.problem.num_classes, penalty,
            standardiser=standardiser, curvature=self.curvature, start=start,
            device=self.problem.device, tolerance=tolerance,
        )  # fmt: skip


def _judgement(problem: HeadProblem) -> tuple[list[tuple[Labelled, Labelled]], str]:
    """(fit, judge) pairs for choosing the penalty, and their name."""
    if problem.val is not None and len(problem.val):
        return [(problem.train, problem.val)], "validation"
    pairs = _folded(problem)
    return pairs, f"{len(pairs)}-fold cross-validation"


def _joint(problem: HeadProblem) -> HeadProblem | None:
    """The problem with training and validation images together as its training images.

    None if there are too few or too many of either, or if their features are in a file.
    """
    train, val = problem.train, problem.val
    if val is None or len(val) >= ENOUGH_HELD_OUT or len(train) < FEWEST_IMAGES:
        return None
    if any(type(part.features) is not np.ndarray for part in (train, val)):
        return None
    if len(train) * train.features.shape[1] * problem.num_classes > MOST_WORK:
        return None
    both = Labelled(
        np.concatenate([train.features, val.features]),
        np.concatenate([train.labels, val.labels]),
        _groups([train, val]),
    )
    pictures = problem.pictures
    if pictures is not None and problem.val_pictures is not None:
        pictures = np.concatenate([pictures, problem.val_pictures])
    return replace(problem, train=both, val=None, pictures=pictures, val_pictures=None)


def _groups(parts: Sequence[Labelled]) -> np.ndarray | None:
    """The groups of all parts in turn; None if they are unknown."""
    known = [part.groups for part in parts if part.groups is not None]
    return np.concatenate(known) if known and len(known) == len(parts) else None


def _folded(problem: HeadProblem) -> list[tuple[Labelled, Labelled]]:
    return [(problem.train.at(fit), problem.train.at(judge)) for fit, judge in folds(problem)]


def _head(solution: Solution, standardiser: Standardiser) -> SolvedHead:
    """The solution as a head on raw features."""
    weight, bias = standardiser.folded(solution.weight.cpu(), solution.bias.cpu())
    return SolvedHead(weight.float(), bias.float(), {}, "")
