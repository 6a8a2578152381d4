"""Nearest class mean: the image belongs to the class whose mean features are closest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitune.methods.probe_authoring import HeadProblem, Labelled, SolvedConfig, SolvedHead, folds
from vitune.ops import Standardiser, row_chunks

SHARPNESSES = tuple(2.0**power for power in range(-12, 5))

CHUNK = 4096
"""Images read at a time."""

FAR = 1e6
"""Half the squared distance to a class that has no image: it is never the nearest."""


@dataclass
class NearestClassMeanConfig(SolvedConfig):
    """logit_c = -s ‖z - μ_c‖² / 2 with z the standardised features, μ_c a class's mean.

    ‖z‖² is the same for all classes, so the head is linear: weight s μ_c, bias -s ‖μ_c‖² / 2. The
    sharpness s affects only the confidence of the predictions; it is the one with the lowest
    cross-entropy on validation, or in 5-fold cross-validation.

    Source: Mensink et al., Distance-based image classification (TPAMI 2013), without its metric.
    """

    method = "ncm"
    title = "Nearest class mean"
    source = "Mensink et al. 2013"
    counts_on_vit_b16 = (({}, 0),)

    def solve(self, problem: HeadProblem) -> SolvedHead:
        """The class means with the chosen sharpness."""
        weight, bias = _means(problem.train, problem.num_classes)
        pairs = [(problem.train, problem.val)] if problem.val is not None else [
            (problem.train.at(fit), problem.train.at(judge)) for fit, judge in folds(problem)
        ]  # fmt: skip
        if not pairs:
            return _sharpened(weight, bias, 1.0 / problem.train.features.shape[1], "prior", ())
        losses, right, count = torch.zeros(len(SHARPNESSES)), 0.0, 0
        for fit, judge in pairs:
            head = SolvedHead(*_means(fit, problem.num_classes), {}, "")
            labels = torch.from_numpy(np.asarray(judge.labels))
            logits = head.logits(judge.features)
            losses += torch.stack(
                [F.cross_entropy(s * logits, labels, reduction="sum") for s in SHARPNESSES]
            )
            right += float((logits.argmax(1) == labels).sum())
            count += len(labels)
        tried = tuple(
            {"sharpness": s, "loss": loss / count, "accuracy": right / count}
            for s, loss in zip(SHARPNESSES, losses.tolist(), strict=True)
        )
        best = min(tried, key=lambda entry: entry["loss"])["sharpness"]
        how = "validation" if problem.val is not None else f"{len(pairs)}-fold cross-validation"
        return _sharpened(weight, bias, best, how, tried)


def _means(data: Labelled, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weight and bias on raw features of the head with sharpness 1."""
    standardiser = Standardiser.of(data.features)
    sums = torch.zeros(num_classes, data.features.shape[1], dtype=torch.float64)
    start = 0
    for part in row_chunks(data.features, data.features.shape[1], CHUNK):
        labels = torch.from_numpy(np.asarray(data.labels[start : start + len(part)]))
        sums.index_add_(0, labels, standardiser(part.double().cpu()))
        start += len(part)
    counts = torch.from_numpy(np.bincount(data.labels, minlength=num_classes))
    means = sums / counts.clamp(min=1)[:, None]  # (c, d)
    halves = torch.where(counts > 0, means.square().sum(1) / 2, FAR)
    weight, bias = standardiser.folded(means, -halves)
    return weight.float(), bias.float()


def _sharpened(
    weight: Tensor, bias: Tensor, sharpness: float, how: str, tried: tuple[dict[str, float], ...]
) -> SolvedHead:
    return SolvedHead(sharpness * weight, sharpness * bias, {"sharpness": sharpness}, how, tried)
