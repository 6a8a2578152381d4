"""Backbones of timm: by name with their published weights, or an architecture with a local file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from torch import nn

from vitune.backbones.backbone import (
    Backbone,
    Request,
    build_from_file,
    check_image_size,
)
from vitune.backbones.bundled import bundled_names
from vitune.backbones.heads import num_outputs, zero_heads
from vitune.backbones.pixels import timm_preprocessing
from vitune.backbones.wording import cannot_fetch, one_line
from vitune.errors import BackboneError, nearest


def load_timm(name: str, request: Request, checkpoint: Path | None) -> Backbone:
    """A timm model by its name (`architecture` or `architecture.tag`).

    Raises:
        BackboneError: an unknown name, unavailable weights, or an unsupported option.
    """
    _check_name(name)
    notice = ""
    if checkpoint is not None:
        model, notice = build_from_file(
            lambda num_classes: _build(name, request, num_classes), checkpoint, request.num_classes
        )
        source = f"file {checkpoint}"
    else:
        model = _build(name, request, request.num_classes, pretrained=request.pretrained)
        source = _published(model) if request.pretrained else "random weights"
        if request.num_classes is not None:
            zero_heads(model)
    size = request.image_size
    if size is not None and size != timm_native_size(model):
        check_image_size(model, size, name)
    return Backbone(
        model=model.eval(),
        name=name if checkpoint is None else f"{name}@{checkpoint}",
        preprocessing=timm_preprocessing(model, size),
        num_classes=num_outputs(model),
        source=source,
        notices=(notice,) if notice else (),
    )


def timm_native_size(model: nn.Module) -> tuple[int, int]:
    """(height, width) of the published weights of a timm model."""
    config: Any = model.pretrained_cfg
    height, width = config["input_size"][1:]
    return height, width


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = [*timm.list_models(), *bundled_names()]
        raise BackboneError(
            f"backbone: got {name!r}, expected a timm name, hf:ORG/NAME, torchvision:NAME, "
            f"vitune/NAME or ARCHITECTURE@FILE. {nearest(name, known)}"
        )
    tags = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tags:
        raise BackboneError(
            f"backbone: got {name!r}, expected one of timm's tags for {architecture}. "
            f"{nearest(name, tags)}"
        )


def _build(
    name: str, request: Request, num_classes: int | None, *, pretrained: bool = False
) -> nn.Module:
    options: dict[str, Any] = {}
    if num_classes is not None:
        options["num_classes"] = num_classes
    if request.drop_path:
        options["drop_path_rate"] = request.drop_path
    if request.image_size is not None:
        options["img_size"] = request.image_size
    while True:
        try:
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
            return model
        except TypeError as error:
            # A fully convolutional network takes any size and has no such argument.
            if "img_size" not in str(error) or options.pop("img_size", None) is None:
                raise BackboneError(
                    f"backbone {name}: got options {options!r}, expected supported ones. timm "
                    f"answered: {one_line(error)}"
                ) from error
        except Exception as error:
            if pretrained:
                raise cannot_fetch(name, error) from error
            raise BackboneError(
                f"backbone {name}: got options {options!r}, expected supported ones. timm "
                f"answered: {one_line(error)}"
            ) from error


def _published(model: nn.Module) -> str:
    config: Any = model.pretrained_cfg
    place = config.get("hf_hub_id") or config.get("url") or config.get("file") or "its release"
    return f"timm weights of {place}"
