"""From values to picture coordinates: linear and logarithmic scales with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vitune.report.formatting import TIE, number, short_count

MARGIN, LEAST_MARGIN = 1.6, 1.1
"""Factors that a logarithmic scale extends beyond its values on either side."""


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis, in picture units."""

    at: float
    label: str


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, stop]: linear, or in log(value) where `log`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The picture coordinate of `value`, to a hundredth."""
        low, high, value = (
            (math.log(self.low), math.log(self.high), math.log(value))
            if self.log
            else (self.low, self.high, value)
        )
        return round(self.start + (value - low) / (high - low) * (self.stop - self.start), 2)

    @property
    def middle(self) -> float:
        """The picture coordinate half-way."""
        return (self.start + self.stop) / 2


def nice_scale(
    values: Iterable[float], start: float, stop: float, *, zero: bool = False, top: float = math.inf
) -> tuple[Scale, list[float]]:
    """A linear scale around `values` with round ends, and its ticks.

    Args:
        values: what must fit; at least one.
        start: picture coordinate of the low end.
        stop: picture coordinate of the high end.
        zero: begin at 0 where the values reach below half of their maximum.
        top: the high end never lies above this (1 for shares).
    """
    found = list(values)
    low, high = min(found), max(found)
    if zero and 0 <= low < 0.5 * high:
        low = 0.0
    if math.isclose(low, high, rel_tol=1e-9):
        margin = abs(low) * 0.1 or 1.0
        low, high = (low - margin if low else low), high + margin
    step = _round_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [index * step for index in range(first, last + 1) if index * step <= top * (1 + 1e-9)]
    return Scale(ticks[0], min(last * step, top), start, stop), ticks


def whole_ticks(low: int, high: int, most: int) -> list[int]:
    """At most about `most` round whole numbers in [low, high], both ends kept apart."""
    step = max(1, math.ceil(_round_step((high - low) / most))) if high > low else 1
    inner = [value for value in range(0, high + 1, step) if low < value < high]
    near = step / 2
    kept = [value for value in inner if value - low > near and high - value > near]
    return [low, *kept, *([high] if high > low else [])]


def log_scale(values: Iterable[float], start: float, stop: float) -> tuple[Scale, list[Tick]]:
    """A logarithmic scale around positive `values` with a margin, ticks at powers of ten.

    Where fewer than three powers of ten fall inside, 2 and 5 times them are marked too; if that is
    not enough, round numbers at even distances. Values close together get a smaller margin.
    """
    found = list(values)
    margin = min(MARGIN, max(LEAST_MARGIN, math.sqrt(max(found) / min(found))))
    low, high = min(found) / margin, max(found) * margin
    scale = Scale(low, high, start, stop, log=True)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for factors in ((1,), (1, 2, 5)):
        places = sorted(factor * 10.0**exponent for exponent in exponents for factor in factors)
        ticks = [place for place in places if low <= place <= high]
        if len(ticks) >= 3:
            break
    else:
        even = [tick for tick in nice_scale((low, high), start, stop)[1] if low <= tick <= high]
        ticks = max(ticks, even, key=len)
    return scale, [Tick(scale(tick), _magnitude(tick)) for tick in ticks]


def _magnitude(value: float) -> str:
    if value < 1000:
        return number(value)
    digits, _, letter = short_count(value).partition(TIE)
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}{TIE}{letter}"


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 2.5, 5 x 10^k that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= step * (1 - 1e-9))
