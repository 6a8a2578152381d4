"""Gates of a tampered backbone: where they open, and how patches read through them are sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

OPEN = 1e-4
"""A bin counts as empty below this share of the strongest one."""


@dataclass(frozen=True)
class Reading:
    """One token read off a gradient.

    Shapes: coefficients (n,) of the patch; tags (t,) of its image.
    """

    position: int
    coefficients: Tensor
    tags: Tensor


def even_edges(values: Tensor, count: int) -> Tensor:
    """Lower edges of `count` bins with equal shares of `values`; the first lies below them all.

    Shapes: values (m,); returns (count,).
    """
    shares = torch.arange(1, count, dtype=torch.float64) / count
    lowest = values.min().double() - values.std().double()
    return torch.cat([lowest[None], torch.quantile(values.double(), shares)]).float()


def top_edges(values: Tensor, count: int, num_images: int) -> Tensor:
    """Lower edges of `count` bins at the top of `values`, each holding one of `num_images`.

    Where there are bins enough for all images this is `even_edges`.
    """
    if count >= num_images:
        return even_edges(values, count)
    shares = 1 - torch.arange(count, 0, -1, dtype=torch.float64) / num_images
    return torch.quantile(values.double(), shares).float()


def clustered(readings: Sequence[Reading], num_images: int) -> list[list[Reading]]:
    """Readings by image: k-means on tags, each cluster holding each position at most once.

    Each position in turn starts the clusters; assignments are optimal (Hungarian) per position.
    The grouping with the least squared distance is kept.
    """
    if not readings:
        return []
    tags = torch.stack([reading.tags for reading in readings]).double().numpy()
    places = np.array([reading.position for reading in readings])
    best, least = None, np.inf
    for anchor in np.unique(places):
        chosen, cost = _kmeans(tags, places, _starts(tags, places, anchor, num_images))
        if cost < least:
            best, least = chosen, cost
    assert best is not None
    groups = [
        [readings[i] for i in np.flatnonzero(best == k).tolist()] for k in range(best.max() + 1)
    ]
    return [group for group in groups if group]


def _starts(tags: np.ndarray, places: np.ndarray, anchor: int, num_images: int) -> np.ndarray:
    """The tags of one position, and as long as clusters are missing the farthest of all others."""
    most = max(num_images, int(np.bincount(places).max()))
    centres = list(tags[places == anchor][:most])
    while len(centres) < min(most, len(tags)):
        gaps = ((tags[:, None] - np.array(centres)[None]) ** 2).sum(-1).min(1)
        centres.append(tags[int(gaps.argmax())])
    return np.array(centres)


def _kmeans(tags: np.ndarray, places: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    chosen = np.full(len(tags), -1)
    for _ in range(30):
        before, total = chosen.copy(), 0.0
        for place in np.unique(places):
            members = np.flatnonzero(places == place)
            costs = ((tags[members][:, None] - centres[None]) ** 2).sum(-1)
            lines, columns = linear_sum_assignment(costs)
            chosen[members[lines]] = columns
            total += float(costs[lines, columns].sum())
        if (chosen == before).all():
            break
        for k in np.unique(chosen):
            centres[k] = np.median(tags[chosen == k], axis=0)
    return chosen, total
