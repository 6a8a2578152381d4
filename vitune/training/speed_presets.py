"""The presets of `--speed`: named sets of settings that trade exactness for time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from vitune.errors import VituneError

Speed = Literal["exact", "fast", "fastest", "custom"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "exact": {"tokens": "keep"},
    "fast": {"tokens": "merge:0.5@0", "lean": True, "precision": "auto"},
    "fastest": {"tokens": "merge:0.75@0,1", "lean": True, "precision": "auto"},
}
"""Settings by preset; in addition, the method's own approximations (`speed_arguments`).

A precision of "auto" is bf16 on every device that multiplies it, however narrow the network."""

FASTER = ("fast", "fastest")
ALIKE = {"precision": ("auto", "bf16", "fp16")}
"""Values that do not contradict a faster preset's."""

RESOLVED = {"precision": (*ALIKE["precision"], "fp32")}
"""The same in a run's own record: fp32 is what "auto" became on a processor without bf16."""


def with_preset(values: Mapping[str, Any], *, is_record: bool = False) -> dict[str, Any]:
    """Settings with those of their `speed` filled in.

    Args:
        is_record: the settings are those of a run, in which "auto" has become a number format.

    Raises:
        VituneError: a given setting contradicts the preset.
    """
    speed = values.get("speed")
    filled = dict(values)
    alike = RESOLVED if is_record else ALIKE
    for name, value in PRESETS.get(str(speed), {}).items():
        given = filled.setdefault(name, value)
        if given not in alike.get(name, (value,)):
            raise contradiction(str(speed), f"--{name.replace('_', '-')} {given}", str(value))
    return filled


def contradiction(speed: str, given: str, expected: str) -> VituneError:
    """The error for a setting that contradicts a preset."""
    return VituneError(
        f"--speed: got '{speed}' with {given}, expected {expected} or no such setting. Leave "
        "--speed out to combine single flags."
    )


def settled_speed(
    speed: Speed | None,
    tokens: str,
    given: Mapping[str, Any],
    offered: Mapping[str, Mapping[str, Any]],
    usual: Mapping[str, Any],
) -> tuple[Speed, dict[str, Any]]:
    """The preset's name, and the arguments that the method gets in addition to the given ones.

    Args:
        speed: as requested; with None the single flags decide, and it becomes "exact" or "custom".
        given: the method's arguments as requested, with their types.
        offered: by preset, the method's approximations (`MethodConfig.speed_arguments`).
        usual: the method's defaults.

    Raises:
        VituneError: an argument that contradicts the preset.
    """
    traded = {name for values in offered.values() for name in values}
    changed = [n for n in sorted(traded & set(given)) if given[n] != usual[n]]
    if speed is None:
        return ("custom" if changed or tokens != PRESETS["exact"]["tokens"] else "exact"), {}
    if speed == "exact" and changed:
        name = changed[0]
        raise contradiction(speed, f"--method-arg {name}={given[name]}", f"{name}={usual[name]}")
    wanted = dict(offered.get(speed, {}))
    for name, value in wanted.items():
        if given.get(name, value) != value:
            raise contradiction(speed, f"--method-arg {name}={given[name]}", f"{name}={value}")
    return speed, wanted
