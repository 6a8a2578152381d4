"""Preprocessing from a checkpoint's own configuration: timm, transformers or torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from vitune.backbones.structure import network
from vitune.errors import BackboneError
from vitune.preprocessing import INTERPOLATIONS, Preprocessing

_PILLOW_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_HALF = (0.5, 0.5, 0.5)


def preprocessing_of(model: nn.Module, image_size: tuple[int, int] | None = None) -> Preprocessing:
    """The preprocessing that a network was trained with, at the size it is built for.

    Args:
        model: a network from timm or transformers, bare or inside a `PeftModel`.
        image_size: (height, width) in pixels instead of the network's own.

    Raises:
        BackboneError: the network has no such configuration.
    """
    root = network(model)
    if hasattr(root, "pretrained_cfg"):
        return timm_preprocessing(root, image_size)
    config = getattr(root, "config", None)
    location = getattr(config, "_name_or_path", "")
    if not location:
        raise BackboneError(
            f"preprocessing: got {type(root).__name__} without a configuration, expected a timm "
            f"or transformers network. Load it with vitune.load_backbone, or pass a Preprocessing."
        )
    own = None if interpolates_by_itself(root) else model_image_size(config)
    return hf_preprocessing(location, config, image_size or own)[0]


def timm_preprocessing(model: nn.Module, image_size: tuple[int, int] | None) -> Preprocessing:
    """From timm's data configuration; the size from the patch embedding if that is fixed."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    fixed = getattr(getattr(model, "patch_embed", None), "img_size", None)
    size = image_size or fixed or config["input_size"][1:]
    mode = "squash" if config["crop_mode"] == "squash" else "center"
    return Preprocessing(
        image_size=(int(size[0]), int(size[1])),
        mean=_three(config["mean"]),
        std=_three(config["std"]),
        interpolation=_interpolation(config["interpolation"]),
        crop_pct=min(float(config["crop_pct"]), 1.0),
        crop_mode=mode,
    )


def torchvision_preprocessing(transforms: Any, image_size: tuple[int, int] | None) -> Preprocessing:
    """From the `ImageClassification` preset that belongs to torchvision weights."""
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    return Preprocessing(
        image_size=image_size or (crop, crop),
        mean=_three(transforms.mean),
        std=_three(transforms.std),
        interpolation=_interpolation(transforms.interpolation.value),
        crop_pct=crop / resize,
        crop_mode="center",
    )


def hf_preprocessing(
    location: str, config: Any, image_size: tuple[int, int] | None
) -> tuple[Preprocessing, tuple[str, ...]]:
    """From the image processor saved beside a transformers model, with notices.

    Without one, mean and std 0.5 and the model's own image size are assumed, with a notice.
    """
    from transformers import AutoImageProcessor

    own = model_image_size(config)
    try:
        values = AutoImageProcessor.from_pretrained(location).to_dict()
    except (OSError, ValueError):
        size = image_size or own or (224, 224)
        notice = f"{location} has no image processor: bicubic, mean and std 0.5 are assumed."
        return Preprocessing(size, _HALF, _HALF), (notice,)
    return _from_processor(values, image_size, own), ()


def model_image_size(config: Any) -> tuple[int, int] | None:
    """(height, width) in a transformers configuration or in its vision part."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if isinstance(size, int):
        return size, size
    return None if size is None else (int(size[0]), int(size[1]))


def interpolates_by_itself(model: nn.Module) -> bool:
    """Whether a transformers model takes any image size without an interpolation option."""
    for module in model.modules():
        if hasattr(module, "interpolate_pos_encoding"):
            asked = inspect.signature(module.forward).parameters
            return "interpolate_pos_encoding" not in asked
    return False


def _from_processor(
    values: Mapping[str, Any],
    image_size: tuple[int, int] | None,
    own: tuple[int, int] | None,
) -> Preprocessing:
    size = dict(values.get("size") or {})
    crop = dict(values.get("crop_size") or {}) if values.get("do_center_crop") else {}
    edge = size.get("shortest_edge")
    target = _height_width(crop) or _height_width(size) or ((edge, edge) if edge else own)
    mode, kept = "squash", 1.0
    if edge:
        mode, kept = "center", (target[0] / edge if target else 1.0)
    elif crop and _height_width(size):
        kept = target[0] / size["height"] if target else 1.0
    if edge and not crop and values.get("crop_pct"):
        small = edge < 384  # ConvNeXt's processor crops below 384 pixels and squashes from 384 on
        mode, kept = ("center", float(values["crop_pct"])) if small else ("squash", 1.0)
    normalised = values.get("do_normalize", True)
    mean = _three(values["image_mean"]) if normalised else (0.0, 0.0, 0.0)
    std = _three(values["image_std"]) if normalised else (1.0, 1.0, 1.0)
    return Preprocessing(
        image_size=image_size or target or (224, 224),
        mean=mean,
        std=std,
        interpolation=_interpolation(values.get("resample", 3)),
        crop_pct=min(kept, 1.0),
        crop_mode=mode,
    )


def _height_width(size: Mapping[str, Any]) -> tuple[int, int] | None:
    if "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    return None


def _three(values: Any) -> tuple[float, float, float]:
    if isinstance(values, int | float):
        values = (values,) * 3
    first, second, third = (float(value) for value in values)
    return first, second, third


def _interpolation(value: Any) -> str:
    """A filter name of this package; unknown filters become bicubic."""
    if isinstance(value, str):
        return value if value in INTERPOLATIONS else "bicubic"
    return _PILLOW_FILTERS.get(int(value), "bicubic")
