"""Training objectives: callables that return a dictionary of named losses to be summed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vitune.errors import VituneError, nearest
from vitune.objectives.cross_entropy import CrossEntropy
from vitune.objectives.graph import graph_penalty
from vitune.objectives.pace import Pace
from vitune.objectives.step import DeltaNoise, NoisePlan, Objective, Step

__all__ = [
    "OBJECTIVES",
    "CrossEntropy",
    "DeltaNoise",
    "NoisePlan",
    "Objective",
    "Pace",
    "Step",
    "argument_names",
    "graph_penalty",
    "new_objective",
]

OBJECTIVES: dict[str, Callable[..., Objective]] = {"cross_entropy": CrossEntropy, "pace": Pace}
"""What `--objective` takes."""


def new_objective(name: str, arguments: Mapping[str, Any] | None = None) -> Objective:
    """The objective called `name` with its arguments.

    Raises:
        VituneError: an unknown objective or argument, or a value out of range.
    """
    if name not in OBJECTIVES:
        raise VituneError(
            f"objective: got {name!r}, expected one of {tuple(OBJECTIVES)}. "
            f"{nearest(name, OBJECTIVES)}"
        )
    valid = argument_names(name)
    unknown = sorted(set(arguments or {}) - set(valid))
    if unknown:
        raise VituneError(
            f"--objective-arg: got {unknown[0]!r}, expected an argument of {name!r}. "
            f"{nearest(unknown[0], valid)}"
        )
    return OBJECTIVES[name](**(arguments or {}))


def argument_names(name: str) -> tuple[str, ...]:
    """Names that `--objective-arg` accepts for `name`."""
    made: Any = OBJECTIVES[name]
    return tuple(item.name for item in dataclasses.fields(made) if item.init)
