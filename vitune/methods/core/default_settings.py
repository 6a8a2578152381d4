"""Settings used when the user gives none, as recorded by the commands named beside them.

They apply to the backbone they were chosen on; others use a method's usual rate, the class
attribute `default_lr`. What a run makes of either is the business of `vitune.training.rates`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("default_settings.json")
"""By backbone, oldest first: the command that chose them, its tasks and studies, and settings by
method. The latest record of a method counts."""


def recorded(backbone: str, method: str, name: str, otherwise: Any) -> Any:
    """The recorded value of a training setting of `method` on `backbone`, else `otherwise`."""
    for record in reversed(_by_backbone().get(backbone, [])):
        if method in record["settings"]:
            return record["settings"][method].get(name, otherwise)
    return otherwise


@cache
def _by_backbone() -> dict[str, list[dict[str, Any]]]:
    return dict(json.loads(FILE.read_text(encoding="utf-8")))
