"""Load any backbone: from timm, transformers, torchvision, bundled, or a local file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from vitune.backbones.backbone import Backbone, Request
from vitune.backbones.bundled import PREFIX as BUNDLED_PREFIX
from vitune.backbones.bundled import load_bundled
from vitune.backbones.weight_file import check_file
from vitune.errors import BackboneError

HF_PREFIX = "hf:"
_TORCHVISION_PREFIX = "torchvision:"


def load_backbone(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    pretrained: bool = True,
    drop_path: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Backbone:
    """A pre-trained network with the preprocessing it was trained with.

    Args:
        name: a timm name (`vit_base_patch16_224.augreg_in21k`), `hf:ORG/NAME`, `hf:/folder`,
            `torchvision:NAME[.WEIGHTS]`, `vitune/NAME` (bundled), or `ARCHITECTURE@FILE`.
        num_classes: outputs of a new classifier, whose weight and bias are zero; a local file's
            head is kept if it has that many. None keeps the checkpoint's own head, or returns
            features if it has none.
        image_size: pixels, one number or (height, width); position embeddings are interpolated if
            it is not the native size. None means the native size.
        checkpoint: a `.safetensors`, `.pth`, `.pt`, `.bin` or Google `.npz` file for the
            architecture `name`; the same as `name@FILE`.
        pretrained: False leaves random weights.
        drop_path: stochastic depth in training, in [0, 1).
        dtype: of the parameters; None keeps float32.

    Raises:
        BackboneError: the name is unknown (the nearest ones are listed), the weights cannot be
            downloaded or do not fit, or an option is out of range or not supported by the
            architecture.
    """
    name, file = file_of(name, checkpoint)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    request = Request(num_classes, size, pretrained, drop_path)
    backbone = _load(name, request, file)
    return replace(backbone, model=backbone.model.to(dtype or torch.float32))


def absolute_backbone(name: str) -> str:
    """`name` rewritten so that its file or folder is found from any working directory."""
    if name.startswith(HF_PREFIX):
        folder = Path(name.removeprefix(HF_PREFIX)).expanduser()
        return f"{HF_PREFIX}{os.path.abspath(folder)}" if folder.is_dir() else name
    architecture, at, file = name.partition("@")
    return f"{architecture}@{os.path.abspath(Path(file).expanduser())}" if at else name


def _load(name: str, request: Request, file: Path | None) -> Backbone:
    if name.startswith(BUNDLED_PREFIX):
        return load_bundled(name, request, file)
    if name.startswith(HF_PREFIX):
        if file is not None:
            raise BackboneError(
                f"checkpoint: got {str(file)!r} with {name!r}, expected none: transformers models "
                f"are loaded from a folder, hf:/path/to/folder."
            )
        from vitune.backbones.hf_source import load_hf

        return load_hf(name, request)
    if name.startswith(_TORCHVISION_PREFIX):
        from vitune.backbones.torchvision_source import load_torchvision

        return load_torchvision(name, request, file)
    from vitune.backbones.timm_source import load_timm

    return load_timm(name, request, file)


def file_of(name: str, checkpoint: str | Path | None) -> tuple[str, Path | None]:
    """The architecture, and the checked file that `name@FILE` or `checkpoint` gives.

    Raises:
        BackboneError: both are given, or the file is unusable.
    """
    if "@" in name and not name.startswith(HF_PREFIX):
        name, _, written = name.partition("@")
        if checkpoint is not None:
            raise BackboneError(
                f"checkpoint: got {str(checkpoint)!r} and {written!r}, expected one file. Use "
                "name@FILE or checkpoint, not both."
            )
        checkpoint = written
    if checkpoint is None:
        return name, None
    return name, check_file(Path(checkpoint)).absolute()
