"""Checks of a method's arguments by the types that its config declares."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from vitune.errors import VituneError

LARGEST = 2**63
"""PyTorch has sizes and numbers up to here."""

Kind = tuple[str, Callable[[Any], bool]]
"""What is expected, in words, and whether a value is that."""


def check_fields(config: Any, *, but: Collection[str]) -> None:
    """Refuse values that are not of their fields' types, and replace NumPy's numbers by Python's.

    Known types are int, float, bool, str, tuples of integers and each of them or None; a field of
    another type takes anything, and one whose metadata have "expected" says itself what errors call
    its values. A float takes integers too; a tuple takes other sequences and a
    single integer.

    Args:
        config: a dataclass instance; its fields are changed.
        but: names of fields that are left alone.

    Raises:
        VituneError: a value of another type, or a number that is not finite: JSON has none.
    """
    types_of = _types(config.__class__)
    for field in dataclasses.fields(config):
        declared = types_of.get(field.name, Any)
        choices = _choices(declared)
        wanted = [KINDS[choice] for choice in choices if choice in KINDS]
        if field.name in but or len(wanted) < len(choices):
            continue
        given = getattr(config, field.name)
        value = _plain(given)
        if tuple[int, ...] in choices:
            value = _gathered(value)
        if not any(fits(value) for _, fits in wanted):
            expected = field.metadata.get("expected") or " or ".join(words for words, _ in wanted)
            raise VituneError(f"{field.name}: got {given!r}, expected {expected}.")
        setattr(config, field.name, value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _is_integers(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_is_integer, value))


KINDS: dict[Any, Kind] = {
    int: ("an integer", _is_integer),
    float: ("a finite number", _is_number),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("a word", lambda value: isinstance(value, str)),
    tuple[int, ...]: ("integers", _is_integers),
    types.NoneType: ("None", lambda value: value is None),
}


@functools.cache
def _types(config_class: Any) -> Mapping[str, Any]:
    """Types by field; none where an annotation names what is imported for type checkers only."""
    try:
        return typing.get_type_hints(config_class)
    except (NameError, AttributeError, TypeError):
        return {}


def _choices(declared: Any) -> tuple[Any, ...]:
    """The alternatives of a type."""
    is_union = typing.get_origin(declared) in (types.UnionType, typing.Union)
    return typing.get_args(declared) if is_union else (declared,)


def _plain(value: Any) -> Any:
    """A Python number for NumPy's or a tensor's."""
    is_number = hasattr(value, "item") and getattr(value, "ndim", None) == 0
    return value.item() if is_number else value


def _gathered(value: Any) -> Any:
    """A tuple for another sequence, or of one integer."""
    if _is_integer(value):
        return (value,)
    is_many = isinstance(value, Iterable) and not isinstance(value, str | Mapping)
    return tuple(map(_plain, value)) if is_many else value
