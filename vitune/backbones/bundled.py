"""Small backbones shipped in the package: `vitune/NAME`, one `.json` and `.safetensors` each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitune.backbones.backbone import Backbone, Request, build_from_file, check_image_size
from vitune.backbones.heads import num_outputs, zero_heads
from vitune.errors import BackboneError, nearest
from vitune.preprocessing import Preprocessing

PREFIX = "vitune/"
WEIGHTS = Path(__file__).parent / "weights"
_ARCHITECTURE = "timm.models.vision_transformer.VisionTransformer"


def bundled_names() -> tuple[str, ...]:
    """Names of the backbones that need no download."""
    return tuple(sorted(f"{PREFIX}{path.stem}" for path in WEIGHTS.glob("*.json")))


def load_bundled(name: str, request: Request, checkpoint: Path | None) -> Backbone:
    """A bundled backbone, or its architecture with the weights of `checkpoint`.

    Raises:
        BackboneError: no such backbone, or an unsupported image size.
    """
    if name not in bundled_names():
        raise BackboneError(
            f"backbone: got {name!r}, expected a bundled one. {nearest(name, bundled_names())}"
        )
    record = json.loads((WEIGHTS / f"{name.removeprefix(PREFIX)}.json").read_text())
    if record["architecture"] != _ARCHITECTURE:
        raise BackboneError(
            f"backbone {name}: got architecture {record['architecture']!r}, "
            f"expected {_ARCHITECTURE}."
        )
    native = (record["args"]["img_size"],) * 2
    notice = ""

    def build(num_classes: int | None) -> nn.Module:
        options: dict[str, Any] = {**record["args"], "drop_path_rate": request.drop_path}
        options["img_size"] = request.image_size or native
        if num_classes is not None:
            options["num_classes"] = num_classes
        return VisionTransformer(**options)

    if request.pretrained or checkpoint is not None:
        path = checkpoint or WEIGHTS / f"{name.removeprefix(PREFIX)}.safetensors"
        model, notice = build_from_file(build, path, request.num_classes)
        source = f"file {checkpoint}" if checkpoint else "bundled with vitune"
    else:
        model, source = build(request.num_classes), "random weights"
        if request.num_classes is not None:
            zero_heads(model)
    if request.image_size not in (None, native):
        assert request.image_size is not None
        check_image_size(model, request.image_size, name)
    return Backbone(
        model=model.eval(),
        name=name if checkpoint is None else f"{name}@{checkpoint}",
        preprocessing=Preprocessing(
            image_size=request.image_size or native,
            mean=tuple(record["mean"]),
            std=tuple(record["std"]),
            interpolation=record["interpolation"],
        ),
        num_classes=num_outputs(model),
        source=source,
        notices=(notice,) if notice and checkpoint else (),
    )
