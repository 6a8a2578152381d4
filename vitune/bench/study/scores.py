"""Accuracy, likelihood and calibration of a trained network on one split, image by image."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from vitune.bench.study.cells import Scores
from vitune.data import Split

NUM_BINS = 15


def score(logits: Tensor, split: Split) -> Scores:
    """Top-1, NLL and ECE on `split`, which of its images were right, and which belong together.

    Shapes:
        logits: (b, c), in the split's order.
    """
    labels = torch.from_numpy(split.labels.copy())
    correct = (logits.argmax(-1) == labels).numpy()
    ece = multiclass_calibration_error(
        logits.softmax(-1), labels, num_classes=logits.shape[1], n_bins=NUM_BINS
    )
    return Scores(
        split=split.name,
        num_images=len(split),
        top1=float(correct.mean()),
        nll=F.cross_entropy(logits, labels).item(),
        ece=ece.item(),
        correct=packed(correct),
        groups=None if split.groups is None else packed_groups(split.groups),
    )


def unshared_with(split: Split, training: Sequence[Split | None]) -> np.ndarray:
    """(b,) true for an image of `split` whose file is in no split of `training`."""
    known = {
        digest.tobytes()
        for other in training
        if other is not None and other.digests is not None
        for digest in other.digests
    }
    assert split.digests is not None
    return np.array([digest.tobytes() not in known for digest in split.digests], bool)


def packed(correct: np.ndarray) -> str:
    """One bit per image, as hex digits."""
    return np.packbits(np.asarray(correct, bool)).tobytes().hex()


def unpacked(text: str, num_images: int) -> np.ndarray:
    """(num_images,) bool from `packed`'s digits."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    return bits[:num_images].astype(bool)


def packed_groups(groups: np.ndarray) -> str:
    """A number per image, compressed, as base64. Shapes: groups (b,)."""
    numbers = np.unique(groups, return_inverse=True)[1].astype("<i4")
    return base64.b64encode(zlib.compress(numbers.tobytes())).decode()


def unpacked_groups(text: str) -> np.ndarray:
    """(b,) int64 from `packed_groups`'s text: equal for images of one group."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4").astype(np.int64)
