"""What `--tune` is given: a duration and epochs; settings that it decides are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitune.errors import VituneError
from vitune.methods import get_method

RUNGS = (3, 10, 30)
"""Epochs of the rungs where the user names none."""


def rungs_of(epochs: int | None) -> tuple[int, ...]:
    """A ninth, a third and all of the requested epochs; RUNGS if none were requested."""
    if epochs is None:
        return RUNGS
    return tuple(sorted({max(1, epochs // 9), max(1, epochs // 3), epochs}))


def require_tunable(given: Mapping[str, Any]) -> None:
    """Refuse settings that the search decides.

    Raises:
        VituneError: one of them is given, the method is solved, arguments belong to no method, or
            the run is private.
    """
    for name in ("lr", "head_lr", "start", "head_init", "refit", "select", "choose_best"):
        if name in given:
            raise VituneError(
                f"--tune: got it together with --{name.replace('_', '-')} {given[name]}, expected "
                "one of the two: the search decides that."
            )
    if given.get("dp_epsilon") is not None:
        raise VituneError(
            "--tune: got it together with --dp-epsilon, expected one of the two: every run of a "
            "search would spend privacy. Choose the settings on public images."
        )
    if given.get("method_args") and "method" not in given:
        raise VituneError(
            "--tune: got --method-arg without --method, expected both or neither: without a method "
            "it tries several, which take different arguments."
        )
    if "method" in given and get_method(given["method"]).solved:
        raise VituneError(
            f"--tune: got --method {given['method']}, which is solved, expected one that is "
            "trained. Leave --tune out."
        )


def seconds_of(text: str) -> float:
    """1200 from '20m'; also '90s', '1.5h'.

    Raises:
        VituneError: not a positive duration.
    """
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise VituneError(f"--tune: got {text!r}, expected a duration such as 90s, 20m or 2h.")
    return seconds
