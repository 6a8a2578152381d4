"""Adapters with random values, written as a run would write them."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vitune.adapters import attach, card_of, save_adapter
from vitune.backbones import load_backbone

BACKBONE = "vitune/vit_micro_patch4_32"

KINDS = {"rocks": "rlrr", "birds": "rlrr", "ships": "lora", "trees": "met"}
"""Names of adapters and their methods: merged by vitune, by PEFT, not at all."""


def write_adapter(
    folder: Path,
    method: str = "rlrr",
    *,
    num_classes: int = 3,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    backbone: str = BACKBONE,
    backbone_args: Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    tokens: str = "keep",
) -> Path:
    """An adapter whose every value was moved from where it starts."""
    torch.manual_seed(seed)
    loaded = load_backbone(backbone, num_classes=num_classes, **(backbone_args or {}))
    model = attach(loaded, method, arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    card = card_of(
        model,
        loaded,
        method=method,
        method_args=arguments or {},
        backbone_args=backbone_args or {},
        classes=[f"{folder.name} {index}" for index in range(num_classes)],
        temperature=temperature,
        tokens=tokens,
    )
    save_adapter(model, folder, card)
    return folder


def png(seed: int = 0, size: tuple[int, int] = (40, 36), kind: str = "PNG") -> bytes:
    """An image of noise as a file's bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()
