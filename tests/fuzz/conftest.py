"""The place where all cases run, made once per process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from place import Place


@pytest.fixture(scope="session")
def place(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Place]:
    num, start = (request.config.getoption(name) for name in ("--fuzz-cases", "--fuzz-seed"))
    made = Place(tmp_path_factory.mktemp("fuzz"), num, start)
    try:
        made.fill()
        yield made
    finally:
        made.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These come first: pytest-xdist then gives them all to one process, which makes one place."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.parent != here)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "number" in metafunc.fixturenames:
        num = metafunc.config.getoption("--fuzz-cases")
        metafunc.parametrize("number", range(num), ids=[f"case{n:04d}" for n in range(num)])
