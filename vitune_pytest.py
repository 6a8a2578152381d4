"""pytest's options for vitune's contract suite: `pytest --pyargs vitune.testing --method NAME`.

pytest loads this file wherever vitune is installed, so it imports nothing heavy.
"""

from __future__ import annotations

import pytest

chosen: list[str] = []
"""Names of the methods to test; empty for all of vitune's own."""

plugins: list[str] = []
"""Python files with methods, loaded before the tests are collected."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--method` and `--plugin`."""
    group = parser.getgroup("vitune", "vitune's contract suite (pytest --pyargs vitune.testing)")
    group.addoption(
        "--method", action="append", default=[], help="method to test; may be given several times"
    )
    group.addoption(
        "--plugin", action="append", default=[], metavar="FILE.py", help="file with a method"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Remember the options for `vitune.testing`, which reads them when it is collected."""
    chosen[:] = config.getoption("--method")
    plugins[:] = config.getoption("--plugin")
