"""Checks of values that several methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitune.errors import VituneError, nearest


def check_rank(rank: Any, name: str = "rank") -> None:
    """Refuse anything but a positive integer.

    Raises:
        VituneError: the rank is not an integer of at least 1.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise VituneError(f"{name}: got {rank!r}, expected an integer of at least 1.")


def check_rate(name: str, rate: Any) -> None:
    """Refuse a rate outside [0, 1).

    Raises:
        VituneError: the rate is out of range.
    """
    if not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise VituneError(f"{name}: got {rate!r}, expected a rate in [0, 1).")


def check_share(name: str, share: Any) -> None:
    """Refuse a share outside (0, 1].

    Raises:
        VituneError: the share is out of range.
    """
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
        raise VituneError(f"{name}: got {share!r}, expected a share in (0, 1].")


def check_choice(name: str, value: Any, valid: Sequence[str]) -> None:
    """Refuse a word that is not in `valid`.

    Raises:
        VituneError: any other word.
    """
    if value not in valid:
        hint = nearest(str(value), valid)
        raise VituneError(f"{name}: got {value!r}, expected one of {tuple(valid)}. {hint}")
