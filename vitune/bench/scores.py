"""Accuracy, likelihood and calibration of a trained network on one split, image by image."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from vitune.bench.cells import Scores
from vitune.data import Split
from vitune.inference import LoadedRun

NUM_BINS = 15


def score(run: LoadedRun, split: Split) -> Scores:
    """Top-1, NLL and ECE on `split`, and which of its images were right."""
    logits = torch.cat(list(run.logits(split)))  # (b, c)
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
    )


def packed(correct: np.ndarray) -> str:
    """A bit an image as hex digits."""
    return np.packbits(np.asarray(correct, bool)).tobytes().hex()


def unpacked(text: str, num_images: int) -> np.ndarray:
    """(num_images,) bool out of `packed`'s digits."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    return bits[:num_images].astype(bool)
