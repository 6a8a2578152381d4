"""The probe that takes the place of an adapted network, interrupted in between."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from vitune.adapters import AdapterCard
from vitune.training import TrainConfig, fit

HARMFUL: dict[str, Any] = {
    "data": "demo:digits?train=60", "batch_size": 16, "epochs": 2, "lr": 0.3, "head_lr": 0.3,
    "precision": "fp32", "start": "probe", "select": "last", "choose_best": True,
    "image_size": 16,
}  # fmt: skip


def test_a_stop_while_the_adapted_network_is_moved_leaves_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    copied: list[str] = []

    def stop(source: str, target: str, **_: object) -> None:
        if copied:
            raise KeyboardInterrupt
        shutil.copy2(source, target)
        if Path(source).parent.name == "adapter":
            copied.append(target)

    whole = shutil.copytree
    monkeypatch.setattr(
        "vitune.training.probe_instead.shutil.copytree",
        lambda *given, **options: whole(*given, **options, copy_function=stop),
    )
    with pytest.raises(KeyboardInterrupt):
        fit(TrainConfig.make(HARMFUL), out=out)
    assert copied and not (out / "adapted").exists() and not list(out.glob(".*part"))
    assert AdapterCard.read(out / "adapter").method == "rlrr"
    monkeypatch.undo()
    assert fit(out=out, resume=True).summary.chosen == "probe"
    assert AdapterCard.read(out / "adapter").method == "linear"
    assert AdapterCard.read(out / "adapted").method == "rlrr"
