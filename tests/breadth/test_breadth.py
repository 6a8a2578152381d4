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
from page import PAGE, num_run, page
from results import RESULT, Results
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
    text = PAGE.read_text()
    for name in NAMES:
        assert f"\n| {name.split(' ', 1)[1]} | " in text, name
    assert "WRONG" not in text and ", 0 are wrong." in text
    assert num_run(text) == len(NAMES) - text.count(" | not run | ") > 0


def test_results_are_kept_as_they_come_and_told_of(tmp_path: Path) -> None:
    verdicts = {method: {"kind": "right", "text": ""} for method in METHODS}
    record = {"name": NAMES[0], "class": "Net", "coverage": 0.5, "verdicts": verdicts}
    results = Results(tmp_path / "kept" / "breadth.jsonl")
    assert results.kept() == {}
    for share in (0.5, 0.75):
        results.keep({**record, "coverage": share})
    with results.path.open("a") as file:
        file.write(json.dumps({**record, "name": NAMES[1], "code": "another"}) + "\n")
    kept = Results(results.path).kept()
    assert list(kept) == [NAMES[0]] and kept[NAMES[0]]["coverage"] == 0.75
    text = page(kept, NAMES)
    assert f"1 of {len(NAMES)} networks have run, 8 cases: 8 work" in text
    assert num_run(text) == 1 and text.count(" | not run | ") == len(NAMES) - 1
    results.forget()
    assert results.kept() == {}


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
    record_property(RESULT, json.dumps(record))
    wrong = {method: v["text"] for method, v in verdicts.items() if v["kind"] == "wrong"}
    assert not wrong


def _coverage(model: nn.Module) -> float | None:
    try:
        return RLRRConfig().coverage(model)
    except VituneError:
        return None
