"""Exact statements about an unknown risk from error counts: bounds, tests, numbers of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

from scipy.stats import beta

from vitune.errors import VituneError


def upper_bound(num_errors: int, num_images: int, delta: float) -> float:
    """Clopper-Pearson: the risk is at most this, with probability 1 - δ over the images drawn.

    The largest p with P(Binomial(n, p) <= k) >= δ, which is the (1 - δ) quantile of
    Beta(k + 1, n - k).

    Args:
        num_errors: k, among `num_images` = n independent images.
        delta: δ, the largest probability that the bound is wrong.

    Raises:
        VituneError: δ outside (0, 1), or k outside 0..n.
    Source: Clopper and Pearson, Biometrika 1934, one-sided.
    """
    check_share("--delta", delta)
    if not 0 <= num_errors <= num_images or num_images < 1:
        raise VituneError(
            f"errors: got {num_errors!r} of {num_images!r} images, expected 0 to all of at least 1."
        )
    if num_errors == num_images:
        return 1.0
    return float(beta.ppf(1 - delta, num_errors + 1, num_images - num_errors))


def images_needed(risk: float, delta: float, num_errors: int = 0) -> int:
    """The fewest images that certify `risk` when `num_errors` of them are errors.

    Without an error it is the smallest n with (1 - risk)^n <= δ.

    Raises:
        VituneError: risk or δ outside (0, 1).
    """
    check_share("--risk", risk)
    check_share("--delta", delta)
    high = max(1, math.ceil(math.log(delta) / math.log1p(-risk)))
    if num_errors == 0:
        # log and ceil may round across the boundary; the exact condition decides.
        return high if (1 - risk) ** high <= delta else high + 1
    low = num_errors
    while upper_bound(num_errors, high, delta) > risk:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if upper_bound(num_errors, middle, delta) > risk:
            low = middle
        else:
            high = middle
    return high


def last_certified(
    num_errors: Sequence[int], num_images: int, *, risk: float, delta: float
) -> int | None:
    """Fixed-sequence testing: the last step of the path whose risk is certified to be small enough.

    The steps are tested in their order, each at level δ, and testing ends at the first one that
    fails: the probability of passing any step whose true risk is above `risk` is then at most δ.
    Neither the failed step nor any step after it is chosen, however few errors they have.

    Args:
        num_errors: errors of every step, from the most cautious to the boldest. The path must not
            depend on the images counted here.

    Returns:
        The index of the step; None if the first one fails.

    Source: Learn then Test (Angelopoulos et al., 2021), fixed-sequence testing, with the exact
        binomial test.
    """
    chosen = None
    for step, errors in enumerate(num_errors):
        if upper_bound(errors, num_images, delta) > risk:
            break
        chosen = step
    return chosen


def check_share(name: str, value: float) -> None:
    """Refuse anything but a number strictly between 0 and 1.

    Raises:
        VituneError: out of range, or no number.
    """
    if not (isinstance(value, Real) and 0 < value < 1):
        raise VituneError(f"{name}: got {value!r}, expected a number between 0 and 1.")
