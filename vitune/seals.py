"""A checksum among the values of a file that vitune writes: it reveals edits and flipped bits.

It is no protection: whoever edits a file on purpose can compute it anew, or remove it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "sha256"
"""The entry that holds it."""


def values_sha256(values: Mapping[str, Any]) -> str:
    """64 hex digits of the sha256 of `values` as JSON; the order of keys is free."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` and, as their last entry, the checksum of all others."""
    others = _others(values)
    return {**others, SEAL: values_sha256(others)}


def is_edited(values: Mapping[str, Any]) -> bool:
    """Whether `values` are other ones than were sealed; not if they bear no checksum."""
    return SEAL in values and values[SEAL] != values_sha256(_others(values))


def _others(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != SEAL}
