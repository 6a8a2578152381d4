"""Validation images that look almost like a training image, as pictures of one object do."""

from __future__ import annotations

import numpy as np

from vitune.data import Remark, Split
from vitune.methods.core.solved import Labelled

NEAR = 0.3
"""A lookalike is nearer than this times the median distance to the training images of the class."""

OFTEN = 0.3
"""The share of validation images with a lookalike from which on the user is told.

Measured (docs/defaults-log.md, "Images that belong together"): at most 0.20 on 18 tasks of separate
pictures; 0.45 to 0.66 on three whose training and validation images show the same things.
"""

FEWEST, MOST = 5, 500
"""Training images a class needs to be looked at, and validation images that are looked at."""

ROWS = 10_000
"""Training images from which the scale of the features is taken."""


def lookalikes(train: Labelled, val: Labelled) -> tuple[float, list[tuple[int, int]]]:
    """The share of validation images with a lookalike of their class, and (val, train) pairs.

    Distances are Euclidean between standardised features.

    Returns:
        The share, 0 if no class has enough images, and the pairs, the most alike first.
    """
    some = np.asarray(train.features[:: max(1, len(train) // ROWS)], np.float32)
    mean, scale = some.mean(0), some.std(0) + 1e-6
    chosen = np.unique(np.linspace(0, len(val) - 1, min(MOST, len(val))).astype(int))
    found: list[tuple[float, int, int]] = []
    num_seen = 0
    for label in np.unique(val.labels[chosen]):
        own = np.flatnonzero(train.labels == label)
        if len(own) < FEWEST:
            continue
        known = (np.asarray(train.features[own], np.float32) - mean) / scale
        for place in chosen[val.labels[chosen] == label]:
            here = (np.asarray(val.features[place], np.float32) - mean) / scale
            distances = np.linalg.norm(known - here, axis=1)
            ratio = float(distances.min() / max(float(np.median(distances)), 1e-12))
            num_seen += 1
            if ratio < NEAR:
                found.append((ratio, int(place), int(own[distances.argmin()])))
    pairs = [(place, other) for _, place, other in sorted(found)]
    return len(found) / max(1, num_seen), pairs


def lookalike_remark(share: float, names: tuple[str, ...]) -> Remark | None:
    """What to tell the user if too many validation images have a lookalike; else None."""
    if share < OFTEN:
        return None
    text = (
        f"{100 * share:.0f} % of the validation images look almost like a training image. If "
        "several pictures show one object, person or scene, validation promises too much: name "
        "what they show with --groups"
    )
    return Remark("lookalikes", text, names)


def named(pairs: list[tuple[int, int]], train: Split, val: Split) -> tuple[str, ...]:
    """The pairs by file name."""
    return tuple(f"{val.paths[place]} like {train.paths[other]}" for place, other in pairs)
