"""Several values in one option: separated by commas, or the option repeated, or both.

`--methods lora,rlrr` and `--methods lora --methods rlrr` mean the same, for every option that takes
several values. A path that exists as written is never split at its commas.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vitune.errors import VituneError

SYNTAX = (
    "Options that take several values accept commas and repetition: --methods lora,rlrr and "
    "--methods lora --methods rlrr are the same."
)
_NEXT_PAIR = re.compile(r",(?=\s*[\w:.-]+=)")
_PAST_VALUE = re.compile(r"(=[^=,]*),")


def words(given: Sequence[str] | None) -> list[str]:
    """['linear', 'lora', 'rlrr'] from ['linear, lora', 'rlrr']."""
    return [word.strip() for text in given or () for word in text.split(",") if word.strip()]


def paths(given: Sequence[str] | None) -> list[str]:
    """['a', 'b'] from ['a,b'], unless a file or folder is called 'a,b'."""
    return [
        path for text in given or () for path in ([text] if Path(text).exists() else words([text]))
    ]


def pair_words(given: Sequence[str] | None) -> list[str]:
    """['r=8', 'roles=q,v'] from ['r=8,roles=q,v']: a comma splits if NAME= follows."""
    return [word.strip() for text in given or () for word in _NEXT_PAIR.split(text)]


def share_words(given: Sequence[str] | None) -> list[str]:
    """['black cat=9', 'dog=1'] from ['black cat=9,dog=1']: a comma splits after =NUMBER.

    Names of classes are folder names, which may hold spaces, brackets and commas.
    """
    parts = (_PAST_VALUE.sub(r"\1\n", text).split("\n") for text in given or ())
    return [word.strip() for words_of_one in parts for word in words_of_one]


def numbers(given: Sequence[str] | None, option: str) -> list[float]:
    """[0.001, 0.003] from ['1e-3,3e-3'].

    Raises:
        VituneError: anything but numbers.
    """
    try:
        return [float(word) for word in words(given)]
    except ValueError:
        shown = ",".join(given or ())
        raise VituneError(f"{option}: got {shown!r}, expected numbers, e.g. 1e-3,3e-3.") from None


def whole_numbers(given: Sequence[str] | None, option: str) -> list[int]:
    """[1, 2, 4] from ['1,2,4'].

    Raises:
        VituneError: anything but whole numbers.
    """
    try:
        return [int(word) for word in words(given)]
    except ValueError:
        shown = ",".join(given or ())
        raise VituneError(f"{option}: got {shown!r}, expected whole numbers, e.g. 1,2,4.") from None
