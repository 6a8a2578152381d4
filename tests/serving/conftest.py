"""A folder of adapters and an engine over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from adapters_on_disk import KINDS, write_adapter

from vitune.serving import Engine, EngineSettings


@pytest.fixture(scope="package")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, method) in enumerate(KINDS.items()):
        write_adapter(
            folder / name, method, num_classes=3 + seed, seed=seed, temperature=1 + seed / 2
        )
    return folder


@pytest.fixture(scope="package")
def engine(adapters: Path) -> Iterator[Engine]:
    engine = Engine(adapters, EngineSettings(watch_s=0, max_wait_ms=20, device="cpu"))
    yield engine
    engine.close()
