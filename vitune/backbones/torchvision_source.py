"""Backbones of torchvision: `torchvision:NAME` or `torchvision:NAME.WEIGHTS`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torchvision.models as zoo
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vitune.backbones.backbone import (
    Backbone,
    Request,
    build_from_file,
    check_image_size,
)
from vitune.backbones.heads import num_outputs, zero_heads
from vitune.backbones.pixels import torchvision_preprocessing
from vitune.backbones.weight_file import load_state
from vitune.backbones.wording import cannot_fetch, one_line
from vitune.errors import BackboneError, nearest

PREFIX = "torchvision:"
_POSITIONS = "encoder.pos_embedding"


def load_torchvision(name: str, request: Request, checkpoint: Path | None) -> Backbone:
    """A torchvision classifier; without `.WEIGHTS`, the weights torchvision calls default.

    Raises:
        BackboneError: unknown model or weights, a failed download, an unsupported option.
    """
    weights = _weights(name)
    preset = weights.transforms()
    native = (preset.crop_size[0],) * 2
    size = request.image_size or native
    notice = ""

    def build(num_classes: int | None) -> nn.Module:
        return _build(name, request, num_classes, size)

    if checkpoint is not None:
        model, notice = build_from_file(build, checkpoint, request.num_classes)
        source = f"file {checkpoint}"
    elif request.pretrained:
        model = build(request.num_classes or len(weights.meta["categories"]))
        _load_published(model, name, weights, keep_head=request.num_classes is None)
        source = f"torchvision weights {weights}"
    else:
        model, source = build(request.num_classes), "random weights"
    if request.num_classes is not None and checkpoint is None:
        zero_heads(model)
    if size != native:
        check_image_size(model, size, name)
    return Backbone(
        model=model.eval(),
        name=name if checkpoint is None else f"{name}@{checkpoint}",
        preprocessing=torchvision_preprocessing(preset, request.image_size),
        num_classes=num_outputs(model),
        source=source,
        notices=(notice,) if notice else (),
    )


def _weights(name: str) -> Any:
    """The member of torchvision's weights enumeration for `name`."""
    architecture, _, tag = name.removeprefix(PREFIX).partition(".")
    known = zoo.list_models(module=zoo)
    if architecture not in known:
        raise BackboneError(
            f"backbone: got {name!r}, expected {PREFIX}NAME. {nearest(architecture, known)}"
        )
    choices = zoo.get_model_weights(architecture)
    if tag and tag not in choices.__members__:
        raise BackboneError(
            f"backbone: got weights {tag!r}, expected those of {architecture}. "
            f"{nearest(tag, choices.__members__)}"
        )
    return choices[tag] if tag else choices.DEFAULT


def _build(
    name: str, request: Request, num_classes: int | None, size: tuple[int, int]
) -> nn.Module:
    architecture = name.removeprefix(PREFIX).partition(".")[0]
    options: dict[str, Any] = {}
    if num_classes is not None:
        options["num_classes"] = num_classes
    if architecture.startswith("vit_"):
        if size[0] != size[1]:
            raise BackboneError(
                f"image_size: got {size} for {name}, expected a square: torchvision's ViT "
                "supports no other. Use a timm architecture instead."
            )
        options["image_size"] = size[0]
    if request.drop_path:
        options["stochastic_depth_prob"] = request.drop_path
    try:
        model: nn.Module = zoo.get_model(architecture, weights=None, **options)
        return model
    except TypeError as error:
        raise BackboneError(
            f"backbone {name}: got options {options!r}, expected supported ones. torchvision "
            f"answered: {one_line(error)}"
        ) from error


def _load_published(model: nn.Module, name: str, weights: Any, *, keep_head: bool) -> None:
    try:
        state: dict[str, Tensor] = dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise cannot_fetch(name, error) from error
    own = model.state_dict().get(_POSITIONS)
    if own is not None and own.shape != state[_POSITIONS].shape:
        state[_POSITIONS] = _resampled(state[_POSITIONS], own.shape[1])
    load_state(model, state, Path(weights.url), keep_head=keep_head)


def _resampled(positions: Tensor, num_tokens: int) -> Tensor:
    side = round((num_tokens - 1) ** 0.5)
    resized: Tensor = resample_abs_pos_embed(positions, [side, side], num_prefix_tokens=1)
    return resized  # (1, n, d)
