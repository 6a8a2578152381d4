"""The breadth test hands its results to the process that writes docs/backbones.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
RESULT = "breadth"
_results: dict[str, Any] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect what tests recorded, from this process or from workers."""
    if report.when == "call":
        for name, value in report.user_properties:
            if name == RESULT:
                record = json.loads(str(value))
                _results[record.pop("name")] = record


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the page where every network was run."""
    from page import page
    from test_breadth import NAMES

    if not hasattr(session.config, "workerinput") and set(_results) == set(NAMES):
        PAGE.write_text(page(_results))
