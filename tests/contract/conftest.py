"""Which cases of the contract `make test` runs; pytest explains the assertions of all of them.

Tests x methods x networks are more cases than say something new, so the networks take turns: a
method meets every third one in a test, and others in the next tests. What is left out is marked
slow; `make test-slow` runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import jinja2
import pytest

pytest.register_assert_rewrite("vitune.testing")

LIKE_ANOTHER = ("bundled", "vit_layer_scale")
"""Networks of the contract that are timm ViTs as `vit` is."""


@pytest.fixture(scope="session", autouse=True)
def _templates_are_compiled_once() -> Iterator[None]:
    """PEFT compiles the same model card whenever it saves, which takes most of that time."""
    compiled: Any = jinja2.Environment.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", cache(compiled))
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests: dict[str, int] = {}
    methods: dict[str, int] = {}
    networks: dict[str, int] = {}
    for item in items:
        case = getattr(item, "callspec", None)
        if case is None or not {"method", "backbone"} <= case.params.keys():
            continue
        method, network = case.params["method"], case.params["backbone"]
        test = f"{item.path.name}::{item.name.partition('[')[0]}"
        turn = sum(
            known.setdefault(name, len(known))
            for known, name in ((tests, test), (methods, method), (networks, network))
        )
        is_like = item.path.name == "test_contract.py" and network in LIKE_ANOTHER
        if is_like or turn % 3:
            item.add_marker("slow")
