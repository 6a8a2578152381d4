"""The breadth test keeps each result as it comes; docs/backbones.md is written from them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from results import RESULT, Results

_results = Results()
_own: list[pytest.Config] = []


def pytest_configure(config: pytest.Config) -> None:
    """Only the process that hears of all results keeps them."""
    if not hasattr(config, "workerinput"):
        _own.append(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A run that was cut short goes on: what it has found right or refused is not run again."""
    done = {name for name, record in _results.kept().items() if not _is_wrong(record)}
    again = [item for item in items if _network(item) not in done]
    if len(again) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in again])
        items[:] = again


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what a test recorded, in this process or in a worker."""
    if report.when == "call" and _own:
        for name, value in report.user_properties:
            if name == RESULT:
                _results.keep(json.loads(str(value)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the page where networks were run."""
    from page import write

    if _own and _results.new:
        write(_results)


def _network(item: pytest.Item) -> str:
    if item.get_closest_marker("breadth") is None or not isinstance(item, pytest.Function):
        return ""
    return str(item.callspec.params["name"])


def _is_wrong(record: dict[str, Any]) -> bool:
    return any(verdict["kind"] == "wrong" for verdict in record["verdicts"].values())
