"""Adapters with random values for studies of serving, over a ViT-B/16 of random weights.

python studies/serving_adapters.py OUT --number 1000 [--method rlrr] [--model MODEL]
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from vitune.adapters import CONFIG, TENSORS, attach, card_of, save_adapter
from vitune.backbones import load_backbone
from vitune.tensors import read_tensors, write_tensors

BUNDLED = "vitune/vit_micro_patch4_32"


def backbone_file(out: Path, model: str) -> str:
    """A name for `load_backbone`: `model` with weights drawn at random, or the bundled one."""
    if model == BUNDLED:
        return model
    file = out / f"{model}.safetensors"
    if not file.is_file():
        torch.manual_seed(0)
        out.mkdir(parents=True, exist_ok=True)
        save_file(timm.create_model(model, num_classes=0).state_dict(), file)
    return f"{model}@{file}"


def write_adapters(
    out: Path, backbone: str, number: int, method: str = "rlrr", num_classes: int = 10
) -> list[str]:
    """Write `number` adapters, each of random values, to `out`; their names."""
    loaded = load_backbone(backbone, num_classes=num_classes)
    torch.manual_seed(0)
    model = attach(loaded, method)
    names = [f"{method}-{index:04d}" for index in range(number)]
    card = card_of(
        model, loaded, method=method, method_args={}, backbone_args={}, classes=()
    )  # fmt: skip
    save_adapter(model, out / names[0], card)
    first = read_tensors(out / names[0] / TENSORS)
    for index, name in enumerate(names):
        folder, generator = out / name, torch.Generator().manual_seed(index)
        if index:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(out / names[0] / CONFIG, folder / CONFIG)
        values = {
            key: value + 0.02 * torch.randn(value.shape, generator=generator)
            for key, value in first.items()
        }
        write_tensors(folder / TENSORS, values)
        classes = tuple(f"{name} class {label}" for label in range(num_classes))
        replace(card, classes=classes).write(folder)
    return names


def photo(seed: int, side: int = 256) -> bytes:
    """A JPEG of smooth noise, about as large as a small photo."""
    small = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--method", default="rlrr")
    parser.add_argument("--model", default="vit_base_patch16_224")
    given = parser.parse_args()
    name = backbone_file(given.out, given.model)
    write_adapters(given.out / "adapters", name, given.number, given.method)
    print(f"{given.number} adapters: {given.out / 'adapters'}")
