"""Every network of both zoos with every kind of method; slow: `make test-breadth`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import hf_zoo
import pytest
import timm_zoo
import torch
from torch import Tensor, nn
from verdict import METHODS, judge, logits

from vitune.errors import VituneError
from vitune.methods.rlrr.config import RLRRConfig

BUILDERS: dict[str, Callable[[str], tuple[nn.Module, Tensor]]] = {
    "timm": timm_zoo.build,
    "transformers": hf_zoo.build,
}
NAMES = [
    *(f"timm {name}" for name in timm_zoo.MODELS),
    *(f"transformers {name}" for name in hf_zoo.MODELS),
]


def test_the_zoos_are_whole_and_the_page_lists_them() -> None:
    assert len(timm_zoo.MODELS) >= 90 and len(hf_zoo.MODELS) >= 25 and len(METHODS) == 8
    page = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text()
    for name in NAMES:
        assert f"\n| {name.split(' ', 1)[1]} | " in page, name
    assert "WRONG" not in page and f" {0} are wrong." in page


@pytest.mark.breadth
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_right_or_refused(name: str, record_property: Callable[[str, object], None]) -> None:
    started = time.process_time()
    library, own_name = name.split(" ", 1)
    model, x = BUILDERS[library](own_name)
    base = logits(model, x)
    assert torch.isfinite(base).all() and base.shape == (2, timm_zoo.NUM_CLASSES)
    verdicts = {method: asdict(judge(model, x, base, method)) for method in METHODS}
    record = {
        "name": name,
        "class": type(model).__name__,
        "coverage": _coverage(model),
        "verdicts": verdicts,
        "cpu_seconds": time.process_time() - started,
    }
    record_property("breadth", json.dumps(record))
    wrong = {method: v["text"] for method, v in verdicts.items() if v["kind"] == "wrong"}
    assert not wrong


def _coverage(model: nn.Module) -> float | None:
    try:
        return RLRRConfig().coverage(model)
    except VituneError:
        return None
