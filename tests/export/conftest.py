"""A run trained once, with and without exits, and one export of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitune.cli import run
from vitune.export import verify

CLASSES = ("dark", "light")


def paint(folder: Path, per_class: int, seed: int) -> Path:
    """Images of no two sizes alike, none square."""
    generator = np.random.default_rng(seed)
    for level, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 128, (30 + 3 * index, 50 + index, 3), dtype=np.uint8)
            Image.fromarray(pixels + np.uint8(100 * level)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="package")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("photos"), 10, seed=0)


@pytest.fixture(scope="package")
def doubtful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images between dark and light, of which no network is sure."""
    folder = tmp_path_factory.mktemp("doubtful")
    generator = np.random.default_rng(2)
    for index in range(12):
        pixels = generator.integers(0, 128, (40, 30 + index, 3), dtype=np.uint8)
        Image.fromarray(pixels + np.uint8(11 * index)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="package")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ViT of two blocks: every block more is a second more in ONNX's exporter."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    size = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 384, "image_size": 32, "patch_size": 8}
    folder = tmp_path_factory.mktemp("backbone")
    ViTForImageClassification(ViTConfig(**size)).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="package")
def trained(photos: Path, backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["--data", str(photos), "--epochs", "2", "--lr", "1e-2", "--head-init", "linear"]
    words += ["--backbone", backbone, "--batch-size", "8"]
    assert run(["train", *words, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="package")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "TIMED_SECONDS", 0.05)
        assert run(["export", str(trained), "--int8", "--out", str(out)]) == 0
    return out


@pytest.fixture(autouse=True)
def _short_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "TIMED_SECONDS", 0.05)


@pytest.fixture(scope="package")
def with_exits(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with an exit at which about half of the images leave."""
    root = tmp_path_factory.mktemp("exits")
    words = ["--at", "1", "--epochs", "20", "--out", str(root / "run")]
    assert run(["exits", "add", str(trained), *words]) == 0
    others = paint(root / "held_out", 20, seed=1)
    words = ["--data", str(others), "--budget", "0.7"]
    assert run(["exits", "calibrate", str(root / "run"), *words]) == 0
    return root / "run"


@pytest.fixture(scope="package")
def subjects(
    trained: Path,
    with_exits: Path,
    photos: Path,
    backbone: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """Everything that `vitune export` takes, by kind."""
    root = tmp_path_factory.mktemp("subjects")

    def made(kind: str) -> Path:
        if kind in there:
            return there[kind]
        there[kind] = root / kind
        if kind == "merged":
            assert run(["merge", str(trained), "--out", str(root / kind)]) == 0
            return there[kind]
        method = {"unmerged": "adaptformer"}.get(kind, kind)
        words = ["--data", str(photos), "--method", method, "--backbone", backbone]
        if kind == "unmerged":
            words += ["--epochs", "2", "--lr", "1e-2"]
        assert run(["train", *words, "--out", str(root / kind)]) == 0
        return there[kind]

    there = {"run": trained, "adapter": trained / "adapter", "exits": with_exits}
    return made
