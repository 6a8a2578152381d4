"""Optional libraries and late imports: what is missing is named, what is there is found."""

from __future__ import annotations

import sys

import pytest

import vitune.training
from vitune.errors import VituneError
from vitune.extras import import_extra, require_extra


def test_what_is_missing_is_named_with_its_extra() -> None:
    require_extra("--to csv", "tables", "csv", "json")
    told = r"--to x: got a Python without no_such, nor_this, .* Run: pip install 'vitune\[x,y\]'\."
    with pytest.raises(VituneError, match=told):
        require_extra("--to x", "x,y", "csv", "no_such", "nor_this")


def test_a_library_that_does_not_load_is_missing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert import_extra("--to csv", "tables", "csv").reader
    monkeypatch.setitem(sys.modules, "csv", None)
    with pytest.raises(VituneError, match="--to csv: got a Python without csv, expected it"):
        import_extra("--to csv", "tables", "csv")


def test_a_late_name_is_loaded_once_and_an_unknown_one_refused() -> None:
    vars(vitune.training).pop("class_tail", None)
    found = vitune.training.class_tail
    assert found.__module__ == "vitune.training.last_block"
    assert vars(vitune.training)["class_tail"] is found
    with pytest.raises(AttributeError, match=r"module 'vitune\.training' has no attribute 'fitt'"):
        vitune.training.fitt  # type: ignore[attr-defined]  # noqa: B018
