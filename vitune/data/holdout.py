"""A validation split from training: stratified, fixed by its seed, no class left empty."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vitune.errors import DataError

Indices = npt.NDArray[np.int64]


def hold_out(
    labels: npt.ArrayLike,
    amount: float | int,
    seed: int,
    *,
    keep_in_train: npt.NDArray[np.bool_] | None = None,
) -> tuple[Indices, Indices]:
    """Divide images into training and validation, each class in proportion to its size.

    With m images to hold out of n, class c gives m n_c / n of them, rounded by largest
    remainder to a sum of m, and never more than n_c - 1: every class keeps an image in training.

    Args:
        labels: (n,) class indices.
        amount: a fraction of n in (0, 1), or an int: the number of validation images.
        seed: determines which images; the same labels and seed always give the same split.
        keep_in_train: (n,) true if an image must not be held out (a duplicate, for example).

    Returns:
        (training, validation) indices, each in ascending order.

    Raises:
        DataError: an amount out of range, or more images than the classes can spare.
    """
    label_array = np.asarray(labels, dtype=np.int64)
    free = np.ones(len(label_array), bool) if keep_in_train is None else ~keep_in_train
    rng = np.random.default_rng([seed, len(label_array)])
    _, class_of, sizes = np.unique(label_array, return_inverse=True, return_counts=True)
    num_free = np.bincount(class_of[free], minlength=len(sizes))
    limits = np.minimum(num_free, sizes - 1)
    wanted = _num_validation(amount, len(label_array), int(limits.sum()))
    quotas = _quotas(sizes, limits, wanted, rng)
    shuffled = rng.permutation(np.flatnonzero(free))
    by_class = shuffled[np.argsort(class_of[shuffled], kind="stable")]
    starts = np.cumsum(num_free) - num_free
    rank = np.arange(len(by_class)) - starts[class_of[by_class]]
    held = np.zeros(len(label_array), bool)
    held[by_class[rank < quotas[class_of[by_class]]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _num_validation(amount: float | int, num_images: int, most: int) -> int:
    """The number of images to hold out; a fraction is capped, a count must be possible."""
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise DataError(f"hold-out: got {amount!r}, expected a fraction or a number of images.")
    if most < 1:
        raise DataError(
            f"hold-out: got {num_images} images, none of which can be held out, expected a class "
            "with "
            "2 different images. Add images or give a validation split."
        )
    if isinstance(amount, float):
        if not 0 < amount < 1:
            raise DataError(f"hold-out fraction: got {amount!r}, expected a number in (0, 1).")
        return min(max(1, round(amount * num_images)), most)
    if not 1 <= amount <= most:
        raise DataError(
            f"hold-out count: got {amount}, expected 1 to {most} of {num_images} images, so that "
            "every class keeps one in training."
        )
    return amount


def _quotas(sizes: Indices, limits: Indices, wanted: int, rng: np.random.Generator) -> Indices:
    """Images each class gives: proportional, rounded to a sum of `wanted`, within `limits`."""
    ideal = wanted * sizes / max(1, int(sizes.sum()))
    quotas = np.minimum(np.floor(ideal).astype(np.int64), limits)
    ties = rng.permutation(len(sizes))
    while quotas.sum() < wanted:
        shortfall = np.where(quotas < limits, ideal - quotas, -np.inf)
        best = np.lexsort((ties, -shortfall))
        open_classes = int((quotas < limits).sum())
        step = min(wanted - int(quotas.sum()), open_classes)
        quotas[best[:step]] += 1
    return quotas
