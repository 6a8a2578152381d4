"""A validation split from training: stratified, fixed by its seed, no class left empty."""

from __future__ import annotations

from collections.abc import Sequence

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
    content: Sequence[bytes] | None = None,
) -> tuple[Indices, Indices]:
    """Divide images into training and validation, each class in proportion to its size.

    With m images to hold out of n, class c gives m n_c / n of them, rounded by largest
    remainder to a sum of m, and never more than n_c - 1: every class keeps an image in training.
    Images that occur once are held out first. A class that has fewer of them than it is to give
    also gives images together with all their copies, about as many as it should.

    Args:
        labels: (n,) class indices.
        amount: a fraction of n in (0, 1), or an int: the number of validation images.
        seed: determines which images; the same labels and seed always give the same split.
        keep_in_train: (n,) true if an image must not be held out.
        content: one key per image; equal keys are copies of one image and stay on one side. Copies
            with different labels stay in training.

    Returns:
        (training, validation) indices, each in ascending order.

    Raises:
        DataError: an amount out of range, or more images than the classes can spare.
    """
    label_array = np.asarray(labels, dtype=np.int64)
    keep = np.zeros(len(label_array), bool) if keep_in_train is None else keep_in_train
    rng = np.random.default_rng([seed, len(label_array)])
    _, class_of, sizes = np.unique(label_array, return_inverse=True, return_counts=True)
    free, repeated = _movable(content, class_of, keep)
    num_free = np.bincount(class_of[free], minlength=len(sizes))
    limits = _limits(class_of, sizes, free, repeated)
    wanted = _num_validation(amount, len(label_array), int(limits.sum()))
    quotas = _quotas(sizes, limits, wanted, rng)
    shuffled = rng.permutation(np.flatnonzero(free))
    by_class = shuffled[np.argsort(class_of[shuffled], kind="stable")]
    starts = np.cumsum(num_free) - num_free
    rank = np.arange(len(by_class)) - starts[class_of[by_class]]
    held = np.zeros(len(label_array), bool)
    held[by_class[rank < quotas[class_of[by_class]]]] = True
    given = np.bincount(class_of[held], minlength=len(sizes))
    for index in rng.permutation(len(repeated)):
        copies = repeated[index]
        label = class_of[copies[0]]
        missing = quotas[label] - given[label]
        is_nearer = 2 * missing >= len(copies) or (missing > 0 and given[label] == 0)
        if is_nearer and given[label] + len(copies) < sizes[label]:
            held[copies] = True
            given[label] += len(copies)
    return np.flatnonzero(~held), np.flatnonzero(held)


def _movable(
    content: Sequence[bytes] | None, class_of: Indices, keep: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], list[Indices]]:
    """Which images can be held out on their own, and the copies that can be held out together."""
    if content is None:
        return ~keep, []
    places: dict[bytes, list[int]] = {}
    for place, key in enumerate(content):
        places.setdefault(key, []).append(place)
    free = np.zeros(len(class_of), bool)
    repeated = []
    for copies in (np.array(found, np.int64) for found in places.values()):
        if keep[copies].any() or len(set(class_of[copies].tolist())) > 1:
            continue
        if len(copies) == 1:
            free[copies] = True
        else:
            repeated.append(copies)
    return free, repeated


def _limits(
    class_of: Indices, sizes: Indices, free: npt.NDArray[np.bool_], repeated: list[Indices]
) -> Indices:
    """Images each class can give: all that can be held out, less the one it must keep."""
    limits = np.bincount(class_of[free], minlength=len(sizes))
    smallest = np.where(limits > 0, 1, sizes)
    for copies in repeated:
        label = class_of[copies[0]]
        limits[label] += len(copies)
        smallest[label] = min(int(smallest[label]), len(copies))
    return np.minimum(limits, sizes - smallest)


def _num_validation(amount: float | int, num_images: int, most: int) -> int:
    """The number of images to hold out; a fraction is capped, a count must be possible."""
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise DataError(f"hold-out: got {amount!r}, expected a fraction or a number of images.")
    if most < 1:
        raise DataError(
            f"hold-out: got {num_images} images, none of which can be held out, expected a class "
            "with 2 different images. Add images or give a validation split."
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
