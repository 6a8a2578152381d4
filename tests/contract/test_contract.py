"""What every method must hold to on every kind of network; the cases come from the registry."""

from __future__ import annotations

from collections import Counter

from vitune.methods import OWN
from vitune.testing.test_contract import *  # noqa: F403
from vitune.testing.test_contract import CASES, RefusedError, attach
from vitune.testing.tiny_backbones import BUILDERS

REFUSED = Counter({"swin": 5, "torchvision_vit": 1})


def test_every_case_runs_or_refuses() -> None:
    refused: Counter[str] = Counter()
    for method, backbone in CASES:
        try:
            attach(method, backbone)
        except RefusedError:
            refused[backbone] += 1
    assert refused == REFUSED
    assert len(CASES) == len(OWN) * len(BUILDERS)
    assert len(CASES) - refused.total() >= 150
