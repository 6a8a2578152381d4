"""Numbers in one word of the command line."""

from __future__ import annotations

from vitune.errors import VituneError


def numbers(words: str, option: str) -> list[float]:
    """[0.001, 0.003] from '1e-3,3e-3'.

    Raises:
        VituneError: something else than numbers.
    """
    try:
        return [float(word) for word in words.split(",") if word.strip()]
    except ValueError:
        raise VituneError(f"{option}: got {words!r}, expected numbers, e.g. 1e-3,3e-3.") from None
