"""The solved probe of a run: the value of frozen features, and where training may start."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitune.backbones import Backbone
from vitune.data import TOLD, Split, Splits, linked
from vitune.methods import (
    PROBE,
    SAMPLE_RATIO,
    HeadProblem,
    Labelled,
    SolvedConfig,
    SolvedHead,
    get_method,
)
from vitune.ops import calibrated_losses, fit_temperature, paired, temperature_pulls
from vitune.runs import SolvedFacts
from vitune.training.feature_reader import FeatureReader, View, mirrored
from vitune.training.lookalikes import lookalikes, named

COPIES: dict[str, tuple[View | None, ...]] = {"none": (None,), "flip": (None, mirrored)}
"""The views of each training image on which a probe may be solved."""

ROWS = 4096
"""Training images scored at a time."""


@dataclass(frozen=True)
class Probe:
    """A solved head with its validation scores.

    Args:
        copies: the views of each image it was solved on, one of COPIES.
        val_loss, val_accuracy: on validation; None without one.
        right: for each validation image whether it is right; empty without validation.
        losses: of each validation image at the best temperature; empty without validation.
        groups: of the validation images, if they are known.
        lookalikes: the share of validation images that look almost like a training image, and
            which; 0 and none if groups are known.
        pulls: how far each validation image pulls the logarithm of the temperature; empty without
            validation.
        temperature: calibrates its confidence on validation; 1 without validation. Other images
            are answered at `sound_temperature`.
        seconds: features and solution together.
        mirror_gain: by how much validation cross-entropy, each at its best temperature, falls if
            mirrored copies are added, and the standard error of that; None if not tried.
    """

    head: SolvedHead
    copies: str
    train_loss: float
    val_loss: float | None
    val_accuracy: float | None
    right: np.ndarray
    losses: np.ndarray
    temperature: float
    seconds: float
    mirror_gain: tuple[float, float] | None = None
    pulls: np.ndarray = field(default_factory=lambda: np.zeros(0))
    groups: np.ndarray | None = None
    lookalikes: tuple[float, tuple[str, ...]] = (0.0, ())

    @property
    def sample_ratio(self) -> float:
        """What its temperature on validation is multiplied by for other images."""
        return self.head.chosen.get(SAMPLE_RATIO, 1.0)

    @property
    def sound_temperature(self) -> float:
        """What its logits are divided by before they become probabilities."""
        return self.temperature * self.sample_ratio

    @classmethod
    def of_nothing(cls) -> Probe:
        """A probe without a head or scores."""
        head = SolvedHead(torch.zeros(0, 0), torch.zeros(0), {}, "")
        return cls(head, "none", 0.0, None, None, np.zeros(0, bool), np.zeros(0), 1.0, 0.0)

    def as_epoch(self, num_images: int) -> dict[str, Any]:
        """The one line of metrics.jsonl."""
        return {
            "epoch": 1, "step": 0, "train_loss": self.train_loss, "lr": None,
            "val_loss": self.val_loss, "val_accuracy": self.val_accuracy,
            "images_per_s": num_images / self.seconds, "train_seconds": self.seconds,
            "seconds": self.seconds,
        }  # fmt: skip

    def facts(self) -> SolvedFacts:
        """For the run's summary."""
        return SolvedFacts(
            val_accuracy=self.val_accuracy,
            val_loss=self.val_loss,
            chosen=dict(self.head.chosen),
            how=self.head.how,
            copies=self.copies,
            temperature=self.temperature,
            mirror_gain=self.mirror_gain,
            seconds=self.seconds,
            lookalikes=(self.lookalikes[0], self.lookalikes[1][:TOLD]),
        )


def solve_probe(
    backbone: Backbone,
    splits: Splits,
    *,
    method: str = PROBE,
    method_args: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    budget_mib: int | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Probe:
    """Compute the features of training and validation once and solve `method` on them.

    Mirrored copies are added if the method leaves that open and calibrated validation cross-entropy
    falls by more than one standard error of the difference, image by image.

    Raises:
        BackboneError: the network has no linear head that reads one vector per image.
    """
    started = time.perf_counter()
    train, val = splits.train, splits.val
    assert train is not None
    config = get_method(method).configure(backbone.model, method_args)
    assert isinstance(config, SolvedConfig)
    copies = config.copies
    with FeatureReader(backbone.model, backbone.preprocessing, device, budget_mib) as read:

        def told(stage: str) -> Callable[[int, int], None] | None:
            return None if on_progress is None else lambda d, t: on_progress(stage, d, t)

        may_mirror = copies == "flip" or (copies is None and val is not None)
        views = COPIES["flip" if may_mirror else "none"]
        features = read(train, views=views, on_progress=told("features"))
        wanted = ["none", "flip"] if copies is None and may_mirror else [copies or "none"]
        parts = [train] if val is None else [train, val]
        pictures = pictures_of(parts)
        groups, val_groups = groups_of(parts, pictures)
        judged = None if val is None else Labelled(read(val), np.asarray(val.labels), val_groups)
        found = {
            name: config.solve(
                _problem(train, features, judged, pictures, groups, len(COPIES[name]), seed, device)
            )
            for name in wanted
        }
        chosen, gain = _preferred(found, judged)
        # What the first solution tells of the features holds whichever copies are preferred.
        told_of = {**found[wanted[0]].chosen, **found[chosen].chosen}
        head = replace(found[chosen], chosen=told_of)
        plain = Labelled(features[: len(train)], np.asarray(train.labels))
        train_loss = _mean_loss(head, plain)
        alike: tuple[float, tuple[str, ...]] = (0.0, ())
        if val is not None and judged is not None and groups is None:
            share, pairs = lookalikes(plain, judged)
            alike = share, named(pairs, train, val)
    probe = replace(Probe.of_nothing(), head=head, copies=chosen, mirror_gain=gain,
                    train_loss=train_loss, lookalikes=alike)  # fmt: skip
    if judged is not None:
        probe = _scored(probe, head.logits(judged.features), torch.from_numpy(judged.labels))
        probe = replace(probe, groups=judged.groups)
    return replace(probe, seconds=time.perf_counter() - started)


def _scored(probe: Probe, logits: Tensor, labels: Tensor) -> Probe:
    """The probe with its validation scores. Shapes: logits (n, c); labels (n,)."""
    right = (logits.argmax(1) == labels).numpy()
    temperature = fit_temperature(logits, labels)
    return replace(
        probe,
        val_loss=F.cross_entropy(logits, labels).item(),
        val_accuracy=float(right.mean()),
        right=right,
        losses=calibrated_losses(logits, labels, temperature).numpy(),
        temperature=temperature,
        pulls=temperature_pulls(logits, labels, temperature).numpy(),
    )


def _problem(
    train: Split, features: Any, val: Labelled | None, pictures: np.ndarray,
    groups: np.ndarray | None, num_views: int, seed: int, device: torch.device | str,
) -> HeadProblem:  # fmt: skip
    """The head's problem with the first `num_views` of each image; `pictures` if any recurs."""
    rows = len(train) * num_views
    labels = np.tile(np.asarray(train.labels), num_views)
    groups = None if groups is None else np.tile(groups, num_views)
    fitted = Labelled(features[:rows], labels, groups)
    own, of_val = None, None
    if num_views > 1 or len(np.unique(pictures)) < len(pictures):
        own, of_val = np.tile(pictures[: len(train)], num_views), pictures[len(train) :]
    return HeadProblem(fitted, val, len(train.classes), own, seed, str(device), of_val, num_views)


def pictures_of(splits: Sequence[Split]) -> np.ndarray:
    """For each image of the splits in turn, the place of the first with the same content."""
    first: dict[bytes, int] = {}
    digests = (row.tobytes() for split in splits for row in split.content_digests)
    return np.array([first.setdefault(digest, place) for place, digest in enumerate(digests)])


def groups_of(
    splits: Sequence[Split], pictures: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Groups of the images to fit and of those to judge; copies of an image are of one group."""
    known = [split.groups for split in splits if split.groups is not None]
    if len(known) < len(splits):
        return None, None
    numbers = linked(pictures.tolist(), np.concatenate(known).tolist())
    return numbers[: len(splits[0])], numbers[len(splits[0]) :]


def _preferred(
    found: Mapping[str, SolvedHead], val: Labelled | None
) -> tuple[str, tuple[float, float] | None]:
    """Mirrored copies, only if they help by more than the standard error of the difference."""
    if len(found) == 1 or val is None:
        return next(iter(found)), None
    labels = torch.from_numpy(np.asarray(val.labels))
    plain, more = (
        calibrated_losses(found[name].logits(val.features), labels) for name in ("none", "flip")
    )
    mean, error = paired(plain, more, val.groups)
    gain = (mean, error) if math.isfinite(error) else None  # a single image has no error
    return ("flip" if mean > error else "none"), gain


def _mean_loss(head: SolvedHead, data: Labelled) -> float:
    """Mean cross-entropy; with thousands of classes not even the logits may fit in memory."""
    total = 0.0
    for start in range(0, len(data), ROWS):
        part = slice(start, start + ROWS)
        losses = _losses(head, Labelled(data.features[part], data.labels[part]))
        total += losses.sum(dtype=np.float64)
    return float(total / len(data))


def _losses(head: SolvedHead, data: Labelled) -> np.ndarray:
    """Cross-entropy of each image."""
    labels = torch.from_numpy(np.asarray(data.labels))
    return F.cross_entropy(head.logits(data.features), labels, reduction="none").numpy()
