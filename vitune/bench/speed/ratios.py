"""Ratios of step times between two methods of one speed bench."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any


def step_ratio(row: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Median over rounds of step time of `row` / step time of `other` in the same round."""
    pairs = zip(row["step_ms"], other["step_ms"], strict=False)
    return statistics.median(mine / theirs for mine, theirs in pairs)
