"""Settings used when the user gives none, as `vitune bench defaults` recorded them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("default_settings.json")
"""Written by the command that stands in it, from validation accuracies alone."""


def recorded(method: str, name: str) -> Any:
    """The recorded value of a training setting of `method`; None where there is none."""
    return _settings().get(method, {}).get(name)


@cache
def _settings() -> dict[str, dict[str, Any]]:
    return dict(json.loads(FILE.read_text(encoding="utf-8"))["settings"])
