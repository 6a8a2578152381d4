"""Methods whose head is solved from the frozen network's features, without gradient steps."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vitune.backbones.sites import head_names
from vitune.errors import VituneError
from vitune.methods.core.head_only import HeadOnlyConfig
from vitune.ops import row_chunks

FOLDS = 5

CAUTIOUS = "penalty_1se"
"""In `SolvedHead.chosen`: the strongest penalty within one standard error of the best. It indicates
how well the features suit the data."""

SAMPLE_RATIO = "temperature_ratio"
"""In `SolvedHead.chosen`: the temperature of a probe on cross-validated images over its temperature
on the validation images alone. Above 1, these are by chance easier than images in general."""


@dataclass(frozen=True)
class Labelled:
    """Features of a split with its labels.

    Args:
        groups: a number per row, equal for images of one patient, object or scene; None if each
            image is on its own.

    Shapes: features (n, d), an array, a memory map or a tensor; labels, groups (n,) int64.
    """

    features: Any
    labels: np.ndarray
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices: np.ndarray) -> Labelled:
        """The rows at `indices`; those of a memory map stay on disk."""
        is_file = isinstance(self.features, np.memmap)
        rows = _Rows(self.features, indices) if is_file else self.features[indices]
        groups = None if self.groups is None else self.groups[indices]
        return Labelled(rows, self.labels[indices], groups)


@dataclass(frozen=True)
class _Rows:
    """Rows of a file, read a slice at a time because all of them may not fit in memory."""

    features: Any
    indices: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.indices), self.features.shape[1]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.array(self.features[self.indices[part]])


@dataclass(frozen=True)
class HeadProblem:
    """The inputs of a solved method.

    Args:
        train: the data the head is fitted to.
        val: the data its settings are chosen on; None: by cross-validation over `train`.
        pictures: (n,) the image of each row of `train`, if images come in several copies or views;
            those of one image never fall into two folds.
        seed: of the folds.
        device: where the arithmetic is done.
        val_pictures: (m,) the same for `val`, numbered alike; given if `pictures` is.
        num_views: of each image among the rows of `train`: 2 with mirrored ones.
    """

    train: Labelled
    val: Labelled | None
    num_classes: int
    pictures: np.ndarray | None = None
    seed: int = 0
    device: str = "cpu"
    val_pictures: np.ndarray | None = None
    num_views: int = 1

    @property
    def share_distinct(self) -> float:
        """Different images relative to rows of `train`; 1 without copies and views."""
        distinct = self.pictures
        return 1.0 if distinct is None else len(np.unique(distinct)) / len(distinct)


@dataclass(frozen=True)
class SolvedHead:
    """A linear head on raw features, and how it was chosen.

    Args:
        chosen: its settings by name.
        how: "validation", "5-fold cross-validation" or "prior".
        tried: one entry per setting: the setting, with "loss" and "accuracy" on the images used to
            choose.

    Shapes: weight (c, d) float32; bias (c,) float32.
    """

    weight: Tensor
    bias: Tensor
    chosen: dict[str, float]
    how: str
    tried: tuple[dict[str, float], ...] = field(default=())

    def logits(self, features: Any) -> Tensor:
        """Shapes: features (n, d); returns (n, c) float32 on the CPU."""
        width = max(self.weight.shape)
        parts = [
            part.float().cpu() @ self.weight.T + self.bias for part in row_chunks(features, width)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.bias))

    def arguments(self) -> dict[str, Any]:
        """The arguments the method needs for this head."""
        return {}

    @torch.no_grad()
    def place(self, model: nn.Module) -> None:
        """Write it into the trained classifier of `model`, with or without an adapter.

        The one head of several whose mean is the answer gets weights for the sum.
        """
        linear, num_heads = trained_classifier(model)
        linear.weight.copy_(self.weight * num_heads)
        if linear.bias is not None:
            linear.bias.copy_(self.bias * num_heads)


def trained_classifier(model: nn.Module) -> tuple[Any, int]:
    """The last layer that is trained and saved, and how many heads' mean the logits are.

    It is a linear layer, unless the method replaces the classifier. A distilled network has two
    heads, of which one is trained.
    """
    names = head_names(model)
    layer = model.get_submodule(names[0])
    copies: Any = getattr(layer, "modules_to_save", None)
    return (layer if copies is None else copies["default"]), len(names)


@dataclass
class SolvedConfig(HeadOnlyConfig):
    """Base of the probes with a closed or convex solution; a subclass solves.

    Args:
        copies: "none" or "flip", the views of each training image it is solved on; None lets
            validation decide.

    Raises:
        VituneError: an unknown value of `copies`.
    """

    copies: str | None = field(default=None)

    solved: ClassVar[bool] = True
    stepped: ClassVar[str] = ""
    """The method that trains the same model by gradient steps, or ''."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.copies not in (None, "none", "flip"):
            raise VituneError(f"copies: got {self.copies!r}, expected none or flip.")

    def solve(self, problem: HeadProblem) -> SolvedHead:
        """The head for `problem`."""
        raise NotImplementedError


def folds(problem: HeadProblem) -> list[tuple[np.ndarray, np.ndarray]]:
    """(fit, judge) row indices: 5 stratified folds over images, each image judged once.

    A class with fewer images than folds is absent from the judged part of some. Empty if no class
    has two images, since nothing can be judged then. An image whose copies have several labels
    counts in the class of the first. Images of one group are in one fold.
    """
    labels = problem.train.labels
    if problem.train.groups is not None:
        return _pairs(labels, _fold_of_groups(labels, problem.train.groups, problem.seed))
    rows = np.arange(len(labels)) if problem.pictures is None else problem.pictures
    pictures, first = np.unique(rows, return_index=True)
    of_picture = labels[first]
    counts = np.bincount(of_picture, minlength=problem.num_classes)
    if counts.max() < 2:
        return []
    order = np.random.default_rng(problem.seed).permutation(len(pictures))
    order = order[np.argsort(of_picture[order], kind="stable")]
    fold = np.empty(len(pictures), np.int64)
    fold[order] = np.arange(len(order)) % min(FOLDS, len(order))
    fold[counts[of_picture] < 2] = -1  # the only image of a class is always used for fitting
    return _pairs(labels, fold[np.searchsorted(pictures, rows)])


def _fold_of_groups(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each row; -1 for groups that hold all images of a class. Shapes: (n,) each."""
    from sklearn.model_selection import StratifiedGroupKFold

    lone = [
        inside[0]
        for inside in (np.unique(groups[labels == label]) for label in np.unique(labels))
        if len(inside) == 1
    ]
    free = np.flatnonzero(~np.isin(groups, lone))
    fold = np.full(len(labels), -1)
    num_folds = min(FOLDS, len(np.unique(groups[free])))
    if num_folds < 2 or np.bincount(labels[free]).max() < num_folds:
        return fold
    dividing = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():  # of classes with fewer images than folds
        warnings.simplefilter("ignore", UserWarning)
        divided = list(dividing.split(free, labels[free], groups[free]))
    for index, (_, judged) in enumerate(divided):
        fold[free[judged]] = index
    return fold


def _pairs(labels: np.ndarray, fold: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(fit, judge) row indices per fold that leaves every class something to fit."""
    found = []
    for index in range(int(fold.max(initial=-1)) + 1):
        judged = np.flatnonzero(fold == index)
        fitted = np.flatnonzero(fold != index)
        is_whole = len(np.unique(labels[fitted])) == len(np.unique(labels))
        if len(judged) and is_whole:
            found.append((fitted, judged))
    return found
