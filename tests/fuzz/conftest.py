"""The place where all cases run, once per session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cases import cases
from images import containers
from place import Place


@pytest.fixture(scope="session")
def place(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Place]:
    num, start = (request.config.getoption(name) for name in ("--fuzz-cases", "--fuzz-seed"))
    made = Place(tmp_path_factory.mktemp("fuzz"), num, start)
    made.fill()
    yield made
    made.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "number" in metafunc.fixturenames:
        num = metafunc.config.getoption("--fuzz-cases")
        metafunc.parametrize("number", range(num), ids=[f"case{n:04d}" for n in range(num)])
