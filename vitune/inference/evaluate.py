"""Score a trained run on labelled images, once, with everything that the report shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from vitune.data import Split
from vitune.errors import DataError
from vitune.inference.load import LoadedRun
from vitune.inference.thumbnails import thumbnail
from vitune.ops import calibration_error_by_chance, effective_number

NUM_BINS = 15
NUM_MISTAKES = 24

Progress = Callable[[int, int], None]
Groups = npt.NDArray[np.int64] | None


def evaluate(
    run: LoadedRun, split: Split, *, data: str = "", on_progress: Progress | None = None
) -> dict[str, Any]:
    """Accuracy, NLL, calibration, confusion, per-class figures and the most confident mistakes.

    "mean_per_class" is the mean of the accuracies of the classes that have images. For images in
    groups "num_groups" counts these, and "effective_images" says how many independent images would
    determine the accuracy as well.

    Args:
        split: labelled images with the run's classes, in its order.
        data: name of the images in the result.

    Raises:
        DataError: no images, or classes that differ from the run's.
    """
    if split.classes != run.classes:
        raise DataError(
            f"classes of {data or split.name!r}: got {split.classes[:5]!r} ..., expected those of "
            f"the run, {run.classes[:5]!r} ..."
        )
    if not len(split):
        raise DataError(f"split {split.name!r}: got no image, expected at least one.")
    batches = []
    for batch in run.logits(split):
        batches.append(batch)
        if on_progress is not None:
            on_progress(sum(map(len, batches)), len(split))
    logits, labels = torch.cat(batches), torch.from_numpy(split.labels.copy())
    return {
        "name": split.name,
        "data": data,
        "num_images": len(split),
        **_scores(logits, labels, len(run.classes)),
        **_independence(logits, labels, split.groups),
        "classes": list(run.classes),
        **_per_class(logits, labels, run.classes, split.groups),
        "calibration": _calibration(logits, labels),
        "mistakes": _mistakes(logits, labels, split),
        "content_hash": split.content_hash,
    }


def _scores(logits: Tensor, labels: Tensor, num_classes: int) -> dict[str, float]:
    probabilities = logits.softmax(-1)
    top5 = min(5, num_classes)
    return {
        "top1": _accuracy(logits, labels, num_classes, 1),
        "top5": _accuracy(logits, labels, num_classes, top5),
        "nll": F.cross_entropy(logits, labels).item(),
        "ece": multiclass_calibration_error(
            probabilities, labels, num_classes=num_classes, n_bins=NUM_BINS
        ).item(),
        "ece_by_chance": calibration_error_by_chance(logits, NUM_BINS),
    }


def _accuracy(logits: Tensor, labels: Tensor, num_classes: int, top_k: int) -> float:
    return multiclass_accuracy(
        logits, labels, num_classes=num_classes, average="micro", top_k=top_k
    ).item()


def _independence(logits: Tensor, labels: Tensor, groups: Groups) -> dict[str, Any]:
    """Nothing, if groups are unknown."""
    if groups is None or len(np.unique(groups)) == len(groups):
        return {}
    right = logits.argmax(-1) == labels
    return {
        "num_groups": len(np.unique(groups)),
        "effective_images": effective_number(right, groups),
    }


def _per_class(
    logits: Tensor, labels: Tensor, classes: tuple[str, ...], groups: Groups
) -> dict[str, Any]:
    count = len(classes)
    options = {"num_classes": count, "average": "none", "zero_division": 0}
    predicted = logits.argmax(-1)
    columns = {
        "precision": multiclass_precision(predicted, labels, **options),
        "recall": multiclass_recall(predicted, labels, **options),
        "f1": multiclass_f1_score(predicted, labels, **options),
    }
    images = torch.bincount(labels, minlength=count)
    return {
        "mean_per_class": columns["recall"][images > 0].mean().item(),
        "confusion": _confusion(predicted, labels, count),
        "per_class": [
            {
                "name": name,
                "num_images": int(images[index]),
                **{key: round(float(values[index]), 6) for key, values in columns.items()},
                **_of_class(predicted, labels, index, groups),
            }
            for index, name in enumerate(classes)
        ],
    }


def _of_class(predicted: Tensor, labels: Tensor, label: int, groups: Groups) -> dict[str, float]:
    """Independent images that would determine a class's recall as well, if groups are known."""
    inside = labels == label
    if groups is None or not inside.any():
        return {}
    right = predicted[inside] == label
    return {"effective_images": effective_number(right, groups[inside.numpy()])}


def _confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> dict[str, list[int]]:
    """The pairs of true and predicted class that occur, as columns; most pairs never do."""
    pairs, images = torch.unique(labels * num_classes + predicted, return_counts=True)
    return {
        "true": (pairs // num_classes).tolist(),
        "predicted": (pairs % num_classes).tolist(),
        "images": images.tolist(),
    }


def _calibration(logits: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """Reliability bins that hold images: mean confidence, accuracy, share of all images."""
    confidence, predicted = logits.softmax(-1).max(-1)
    correct = (predicted == labels).double()
    bins = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    rows = []
    for index in range(NUM_BINS):
        inside = bins == index
        if inside.any():
            rows.append(
                {
                    "confidence": confidence[inside].double().mean().item(),
                    "accuracy": correct[inside].mean().item(),
                    "share": inside.double().mean().item(),
                }
            )
    return rows


def _mistakes(logits: Tensor, labels: Tensor, split: Split) -> list[dict[str, Any]]:
    """The most confident wrong answers, each with a thumbnail."""
    confidence, predicted = logits.softmax(-1).max(-1)
    wrong = (predicted != labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True)][:NUM_MISTAKES].tolist()
    return [
        {
            "path": split.paths[index],
            "label": split.classes[int(labels[index])],
            "predicted": split.classes[int(predicted[index])],
            "confidence": float(confidence[index]),
            "thumbnail": thumbnail(split, index),
        }
        for index in worst
    ]
