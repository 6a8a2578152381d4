"""The sources that need no files: `demo:NAME?option=value&...`, drawn or bundled with a library."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vitune.data.digits import open_digits
from vitune.data.procedural import TASKS, open_procedural
from vitune.data.records import ImageList
from vitune.errors import DataError, nearest

Opener = Callable[[str, str, Mapping[str, int]], ImageList]

DEMOS: dict[str, tuple[Opener, dict[str, int]]] = {
    "digits": (open_digits, {"train": 200, "seed": 0}),
    **{
        name: (open_procedural, {"train": 800, "val": 200, "test": 2000, "seed": 0})
        for name in TASKS
    },
}


def open_demo(spec: str) -> ImageList:
    """Open a demo source, such as `demo:digits?train=200` or `demo:count?seed=1`.

    Args:
        spec: `demo:NAME`, then optionally `?` and `option=value` pairs joined by `&`. Options of
            digits: train (images), seed; of the drawn tasks: train, val, test (images), seed.

    Raises:
        DataError: unknown demo or option, or a value out of range.
    """
    name, _, query = spec.removeprefix("demo:").partition("?")
    if name not in DEMOS:
        raise DataError(f"demo: got {name!r}, expected a known demo. {nearest(name, DEMOS)}")
    opener, defaults = DEMOS[name]
    return opener(spec, name, {**defaults, **_options(spec, query, defaults)})


def _options(spec: str, query: str, defaults: Mapping[str, int]) -> dict[str, int]:
    options = {}
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        if key not in defaults:
            raise DataError(
                f"option of {spec}: got {key!r}, expected a known one. {nearest(key, defaults)}"
            )
        if not value.isdecimal():
            raise DataError(f"option {key} of {spec}: got {value!r}, expected a whole number.")
        options[key] = int(value)
    return options
