"""Result files as checked values: errors name the file, the line and the key."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

from vitune.errors import VituneError
from vitune.seals import SEAL, is_edited


@dataclass(frozen=True)
class Record:
    """One mapping of a result file; absent keys and nulls read as None, wrong types as errors.

    Args:
        values: the mapping.
        where: its place in words, for error texts ("summary.json", "metrics.jsonl line 3").
        is_exact: whether the file must be as it was written: an absent key, a null in place of a
            string, and a number that is NaN or infinite are errors too.
        remedy: what the reader can do about an error.
    """

    values: dict[str, Any]
    where: str
    is_exact: bool = False
    remedy: str = "Write the file again with the command that wrote it."

    def number(self, key: str) -> float | None:
        """A finite number; None where absent, null, NaN or infinite (the null alone if exact)."""
        value = self._value(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, Real):
            raise self._wrong(key, value, "a number")
        try:
            is_finite = math.isfinite(value)
        except OverflowError:
            raise self._wrong(key, value, "a number below 1e308") from None
        if self.is_exact and not is_finite:
            raise self._wrong(key, value, "a finite number")
        return float(value) if is_finite else None

    def share(self, key: str) -> float | None:
        """A number in [0, 1]."""
        value = self.number(key)
        if value is not None and not 0 <= value <= 1:
            raise self._wrong(key, value, "a number in [0, 1]")
        return value

    def whole(self, key: str) -> int | None:
        """A whole number of at least 0."""
        value = self.number(key)
        if value is not None and (value < 0 or value != int(value)):
            raise self._wrong(key, value, "a whole number of at least 0")
        exact = self.values.get(key)  # a float has no more than 53 bits; seeds do
        return exact if value is None or isinstance(exact, int) else int(value)

    def text(self, key: str) -> str | None:
        """A string."""
        value = self._value(key)
        if (value is not None or self.is_exact) and not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def flag(self, key: str) -> bool | None:
        """True or false."""
        value = self._value(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """A mapping; empty where absent."""
        value = self._value(key)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(key, value, "a mapping")
        return value or {}

    def inner(self, key: str) -> Record:
        """A mapping as a record, read as strictly as this one; empty where absent."""
        return replace(self, values=self.mapping(key), where=f"{self.where}: {key}")

    def listing(self, key: str) -> list[Any]:
        """A list; empty where absent."""
        value = self._value(key)
        if value is not None and not isinstance(value, list | tuple):
            raise self._wrong(key, value, "a list")
        return list(value or ())

    def records(self, key: str) -> Iterator[Record]:
        """The mappings of a list; none where absent."""
        for index, value in enumerate(self.listing(key)):
            yield as_record(value, f"{self.where}: {key}[{index}]")

    def needed(self, key: str) -> Any:
        """The value of a key that must be there.

        Raises:
            VituneError: the key is absent or null.
        """
        value = self.values.get(key)
        if value is None:
            raise self._wrong(key, None, "a value")
        return value

    def _value(self, key: str) -> Any:
        if self.is_exact and key not in self.values:
            raise self._wrong(key, None, "a value")
        return self.values.get(key)

    def _wrong(self, key: str, value: object, expected: str) -> VituneError:
        text = f"{self.where}: {key}: got {reprlib.repr(value)}, expected {expected}. {self.remedy}"
        return VituneError(text.rstrip())


def as_record(value: object, where: str) -> Record:
    """`value` as a Record.

    Raises:
        VituneError: `value` is no mapping.
    """
    if not isinstance(value, dict):
        raise VituneError(f"{where}: got {reprlib.repr(value)}, expected a mapping of names.")
    return Record(value, where)


def sealed_record(path: Path) -> Record:
    """The mapping of a JSON file that vitune wrote with a checksum; older ones have none.

    Raises:
        VituneError: the file is not JSON or no mapping, or its values were edited.
    """
    record = as_record(read_json(path, str(path)), str(path))
    if is_edited(record.values):
        raise VituneError(
            f"{path}: got values that were edited after vitune wrote them, expected the original "
            f"ones. Put them back, or remove the entry {SEAL!r} if they are to be believed."
        )
    return record


def read_json(path: Path, where: str) -> Any:
    """The value of a JSON file.

    Raises:
        VituneError: the file is not JSON; the text names the file and the line.
    """
    return _parsed(_text(path, where), where, first_line=1)


def read_json_lines(path: Path, where: str) -> list[Record]:
    """The mappings of a file with one JSON object per line; empty lines are skipped.

    Raises:
        VituneError: a line is no JSON object; the text names the file and the line.
    """
    lines = enumerate(_text(path, where).split("\n"), start=1)
    return [
        as_record(_parsed(line, where, first_line=number), f"{where} line {number}")
        for number, line in lines
        if line.strip()
    ]


def read_yaml(path: Path, where: str) -> dict[str, Any]:
    """The mapping of a YAML file.

    Raises:
        VituneError: the file is not YAML (the text names the line) or holds no mapping.
    """
    import yaml

    text = _text(path, where)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        reason = getattr(problem, "problem", None) or "unreadable text"
        raise VituneError(f"{where}{line}: got {reason!r}, expected YAML.") from None
    return as_record({} if value is None else value, where).values


def whole_numbers(values: Any, where: str, length: int) -> tuple[int, ...]:
    """`values` as counts.

    Raises:
        VituneError: not `length` values, or one that is no whole number of at least 0.
    """
    fine = isinstance(values, list) and len(values) == length
    if not fine or not all(type(value) is int and value >= 0 for value in values):
        raise VituneError(f"{where}: got {reprlib.repr(values)}, expected {length} counts.")
    return tuple(values)


def visible_files(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder with that suffix, by name; hidden ones (being written) left out."""
    if not folder.is_dir():
        return []
    named = (path for path in folder.iterdir() if path.suffix == suffix and path.is_file())
    return sorted(path for path in named if not path.name.startswith("."))


def _text(path: Path, where: str) -> str:
    data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        odd = data[problem.start : problem.end]
        raise VituneError(f"{where} line {line}: got {odd!r}, expected UTF-8 text.") from None


def _parsed(text: str, where: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        line = first_line + problem.lineno - 1
        shown = text.split("\n")[problem.lineno - 1]
        reason = f"expected JSON ({problem.msg}, column {problem.colno})"
    except (ValueError, RecursionError) as problem:
        line, shown, reason = first_line, text, f"expected JSON ({problem})"
    raise VituneError(f"{where} line {line}: got {reprlib.repr(shown)}, {reason}.")
