"""Which cases of the contract `make test` runs; pytest explains the assertions of all of them.

Tests x methods x networks are more cases than say something new, so the networks take turns: a
method meets every sixth one in a test, and others in the next tests. In test_contract.py, which has
seven networks, that is one or two for every method in every test; the tests of PEFT's verbs have
four, so two methods in three meet one in a test. The methods take turns in what is slow for each.
What is left out is marked slow; `make test-slow` runs it.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("vitune.testing")

EVERY = 6
"""One in so many networks is met."""
EXPORTED, EVERY_EXPORTED = "test_unmerged_models_are_exported", 3
"""A test of one network that takes a second for each method, and one in how many methods."""
LIKE_ANOTHER = ("bundled", "vit_layer_scale")
"""Networks of the contract that are timm ViTs as `vit` is."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests: dict[str, int] = {}
    methods: dict[str, int] = {}
    networks: dict[str, int] = {}
    exported = [item for item in items if item.name.startswith(EXPORTED)]
    for index, item in enumerate(exported):
        if index % EVERY_EXPORTED:
            item.add_marker("slow")
    for item in items:
        case = getattr(item, "callspec", None)
        if case is None or not {"method", "backbone"} <= case.params.keys():
            continue
        method, network = case.params["method"], case.params["backbone"]
        if item.path.name == "test_contract.py" and network in LIKE_ANOTHER:
            item.add_marker("slow")
            continue
        test = f"{item.path.name}::{item.name.partition('[')[0]}"
        turn = sum(
            known.setdefault(name, len(known))
            for known, name in ((tests, test), (methods, method), (networks, network))
        )
        if turn % EVERY:
            item.add_marker("slow")
