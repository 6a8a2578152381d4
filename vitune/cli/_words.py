"""Several names or numbers in one word of the command line, separated by commas."""

from __future__ import annotations

from vitune.errors import VituneError


def words(text: str) -> list[str]:
    """['linear', 'rlrr'] from 'linear, rlrr'."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(text: str, option: str) -> list[float]:
    """[0.001, 0.003] from '1e-3,3e-3'.

    Raises:
        VituneError: something else than numbers.
    """
    try:
        return [float(word) for word in words(text)]
    except ValueError:
        raise VituneError(f"{option}: got {text!r}, expected numbers, e.g. 1e-3,3e-3.") from None


def whole_numbers(text: str, option: str) -> list[int]:
    """[1, 2, 4] from '1,2,4'.

    Raises:
        VituneError: something else than whole numbers.
    """
    try:
        return [int(word) for word in words(text)]
    except ValueError:
        raise VituneError(f"{option}: got {text!r}, expected whole numbers, e.g. 1,2,4.") from None
