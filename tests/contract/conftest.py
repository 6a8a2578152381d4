"""Let pytest explain the assertions of the contract suite, which lives in the package."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("vitune.testing")

LIKE_ANOTHER = ("bundled", "vit_layer_scale")
"""Networks of the contract that are timm ViTs as `vit` is; `make test-slow` has their cases."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        case = getattr(item, "callspec", None)
        if case is None or item.path.name != "test_contract.py":
            continue
        if case.params.get("backbone") in LIKE_ANOTHER:
            item.add_marker("slow")
