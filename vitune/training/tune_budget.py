"""What the runs of a search take, estimated from those that it has made."""

from __future__ import annotations

from collections.abc import Sequence

from vitune.training.attempts import Attempt

STEP_OVER_FORWARD = 4.0
"""A training step over a forward pass, for the first estimate of a run's time."""

LATER = 1.1
"""What a run may take for a measured second: the machine may be busier."""


def first_epoch_s(probe_s: float) -> float:
    """Seconds per epoch before any run: the probe read the images twice, only forwards."""
    return probe_s / 2 * STEP_OVER_FORWARD


def epoch_s(attempts: Sequence[Attempt], method: str | None) -> float:
    """Measured seconds per epoch of a method; before its first run, of the slowest method.

    Args:
        attempts: the solved probe first.
    """
    done = [one for one in attempts if one.epochs and not one.has_failed]
    own = [one.seconds / one.epochs for one in done if one.method == method]
    if own:
        return own[-1]
    every = (one.seconds / one.epochs for one in done)
    return max(every, default=first_epoch_s(attempts[0].seconds))


def refit_s(attempts: Sequence[Attempt], seconds: float, more_images: float) -> float:
    """Seconds for a run that took so many, and its probe, on training and validation images.

    Args:
        attempts: the solved probe first.
        more_images: how many times those of training there are.
    """
    return LATER * more_images * (seconds + attempts[0].seconds)
