"""Numbers for readers: shares never round to 0 or 100 %, sizes and times carry units."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

MISSING = "–"
MINUS = "\N{MINUS SIGN}"
TIE = "\N{NO-BREAK SPACE}"


def count(value: float | None) -> str:
    """A whole number with thousands separated: 288,768."""
    return MISSING if value is None else f"{round(value):,}"


def counted(number: int, what: str) -> str:
    """A number of things in words: 1 image, 2,000 images."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def short_count(value: float | None) -> str:
    """A large number in three digits: 289 k, 86.1 M."""
    if value is None:
        return MISSING
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{_three_digits(value / size)}{TIE}{letter}"
    return f"{value:g}"


def percent(share: float | None, decimals: int = 1) -> str:
    """100 x `share` in percent; decimals are added where it would read 0 or 100 and is neither."""
    if share is None:
        return MISSING
    hundredfold = 100 * share
    while decimals < 6 and _reads_as_end(hundredfold, decimals):
        decimals += 1
    return f"{hundredfold:.{decimals}f}{TIE}%".replace("-", MINUS)


def number(value: float | None, digits: int = 4) -> str:
    """`value` to `digits` significant digits: 0.01234, 3.2e-05."""
    if value is None:
        return MISSING
    text = f"{value:.{digits}g}"
    mantissa, exponent_mark, exponent = text.partition("e")
    mantissa = mantissa.replace("-", MINUS)
    return f"{mantissa}e{int(exponent)}" if exponent_mark else mantissa


def duration(seconds: float | None) -> str:
    """A span of time: 45 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.2g}{TIE}s"
    minutes, left_s = divmod(round(seconds), 60)
    hours, left_min = divmod(minutes, 60)
    if hours:
        return f"{hours:,}{TIE}h {left_min:02d}{TIE}min"
    return f"{minutes}{TIE}min {left_s:02d}{TIE}s" if minutes else f"{left_s}{TIE}s"


def size(num_bytes: float | None) -> str:
    """A file size in binary units: 1.11 MiB."""
    if num_bytes is None:
        return MISSING
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= factor:
            return f"{_three_digits(num_bytes / factor)}{TIE}{unit}"
    return f"{num_bytes:g}{TIE}bytes"


def memory(mib: float | None) -> str:
    """Memory that was given in MiB, in MiB or GiB."""
    return MISSING if mib is None else size(mib * 2**20)


def moment(iso_time: str | None) -> str:
    """An ISO time as 'date time zone'; any other text unchanged."""
    if iso_time is None:
        return MISSING
    try:
        parsed = datetime.fromisoformat(iso_time)
    except ValueError:
        return iso_time
    return parsed.strftime("%Y-%m-%d %H:%M %Z").strip()


def setting(value: Any) -> str:
    """A value of config.yaml on one line: mappings as `key=value`, lists with commas."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}={setting(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(setting(part) for part in value) or "none"
    return f"{value:g}" if isinstance(value, float) and abs(value) >= 1e-4 else str(value)


def shorten(text: str, most: int) -> str:
    """`text` cut in its middle to `most` characters, for labels beside the full name."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 3
    return f"{text[: most - 1 - tail].rstrip()}…{text[len(text) - tail :].lstrip()}"


def _three_digits(value: float) -> str:
    decimals = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{decimals}f}"


def _reads_as_end(hundredfold: float, decimals: int) -> bool:
    shown = float(f"{hundredfold:.{decimals}f}")
    return any(
        shown == end and not math.isclose(hundredfold, end, rel_tol=0, abs_tol=1e-9)
        for end in (0.0, 100.0)
    )
