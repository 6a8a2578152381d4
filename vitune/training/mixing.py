"""How far to go from the solved probe towards the trained weights; validation decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vitune.ops import paired

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Points on the line from the weights before the first step (0) to the trained ones (1)."""

CAUTION = 1.0
"""Standard errors that are subtracted from a gain over the probe before gains are compared."""


def mixed(
    first: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """first + share · (trained - first), by name; the very tensors at 0 and 1.

    Source: Wortsman et al., Robust fine-tuning of zero-shot models (CVPR 2022): this line contains
        weights that are better than both ends.
    """
    if share in (0.0, 1.0):
        return dict(trained if share else first)
    return {name: torch.lerp(value, trained[name], share) for name, value in first.items()}


def chosen_share(
    losses: Sequence[Tensor],
    shares: Sequence[float] = SHARES,
    groups: np.ndarray | None = None,
) -> float:
    """The share with the largest gain over the first one, minus its standard error.

    The first is the probe itself with gain 0, so training is kept only as far as it is better by
    more than chance. Near the probe the error is small: a small certain gain beats a large
    uncertain one.

    Args:
        losses: of each validation image, one tensor (n,) per share.
        groups: of these images, (n,), if they are known.
    """
    bounds = [0.0]
    for each in losses[1:]:
        gain, error = paired(losses[0], each, groups)
        bounds.append(gain - CAUTION * error)
    return shares[max(range(len(bounds)), key=lambda place: bounds[place])]
