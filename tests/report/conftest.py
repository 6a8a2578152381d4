"""Run folders to report on, and pages taken apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from report_files import Page, write_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder and returns its path; what is not named is as in a finished run."""
    return lambda **parts: write_run(tmp_path / "run", **parts)


@pytest.fixture
def page_of() -> Callable[[Path], Page]:
    """A page taken apart, with every tag closed."""

    def parsed(path: Path) -> Page:
        page = Page(path.read_text(encoding="utf-8"))
        assert page.open == []
        return page

    return parsed
