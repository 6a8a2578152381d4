"""The uncertainty of a measured share: the Wilson interval, and the spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitune.errors import VituneError

Z_95 = 1.959963984540054


def wilson_interval(share: float, num_trials: float) -> tuple[float, float]:
    """95 % interval of a share p in n trials: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²))/(1 + z²/n).

    Args:
        share: successes / trials, in [0, 1].
        num_trials: how many trials it was counted on, positive.

    Raises:
        VituneError: a share outside [0, 1] or no trials.

    Source: Wilson 1927; unlike the normal interval it stays inside [0, 1] and is right near both.
    """
    if not 0 <= share <= 1:
        raise VituneError(f"share: got {share!r}, expected a number in [0, 1].")
    if num_trials <= 0:
        raise VituneError(f"num_trials: got {num_trials!r}, expected a positive number.")
    squared = Z_95**2 / num_trials
    centre = share + squared / 2
    half = Z_95 * math.sqrt(share * (1 - share) / num_trials + squared / (4 * num_trials))
    low, high = (centre - half) / (1 + squared), (centre + half) / (1 + squared)
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the sample standard deviation sqrt(Σ(x - mean)²/(m - 1)); none for a single value.

    Raises:
        VituneError: no values.
    """
    if not values:
        raise VituneError("values: got none, expected at least one number.")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
