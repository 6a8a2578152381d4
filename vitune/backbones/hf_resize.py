"""Change the image size of a transformers model, so that plain `model(images)` works."""

from __future__ import annotations

import copy
from typing import Any

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vitune.backbones.pixels import interpolates_by_itself, model_image_size
from vitune.backbones.tower import TowerClassifier
from vitune.backbones.wording import one_line
from vitune.errors import BackboneError

_POSITIONS = "position_embedding"


def at_image_size(model: nn.Module, size: tuple[int, int], name: str) -> nn.Module:
    """The model built for `size` = (height, width) in pixels, its position embeddings resampled.

    Models that interpolate in every forward pass (DINOv2) keep their own embeddings.

    Raises:
        BackboneError: the model cannot be built for that size.
    """
    if isinstance(model, TowerClassifier):
        return TowerClassifier(at_image_size(model.tower, size, name), model.head)
    config: Any = model.config
    if interpolates_by_itself(model):
        config.image_size = size[0] if size[0] == size[1] else size
        return model
    resized = copy.deepcopy(config)
    part = getattr(resized, "vision_config", resized)
    try:
        part.image_size = size[0] if size[0] == size[1] else size
        new = type(model)(resized)
        new.load_state_dict(_fitted(model, new, size))
    except Exception as error:
        raise BackboneError(
            f"image_size: got {size} for {name}, expected a size its architecture can be built "
            f"for. transformers answered: {one_line(error)}"
        ) from error
    return new


def _fitted(model: nn.Module, new: nn.Module, size: tuple[int, int]) -> dict[str, Tensor]:
    """The old tensors, with position embeddings in the shape of `new`."""
    state = dict(model.state_dict())
    config: Any = model.config
    for name, target in new.state_dict().items():
        if state[name].shape != target.shape and _POSITIONS in name:
            state[name] = _resampled(state[name], config, size)
    return state


def _resampled(positions: Tensor, config: Any, size: tuple[int, int]) -> Tensor:
    """Position embeddings (1, n, d) or (n, d) for the patch grid of `size`."""
    patch = getattr(config, "vision_config", config).patch_size
    down, across = (patch, patch) if isinstance(patch, int) else patch
    native = model_image_size(config)
    assert native is not None
    old = [native[0] // down, native[1] // across]
    new = [size[0] // down, size[1] // across]
    table = positions if positions.ndim == 3 else positions[None]  # (1, n, d)
    num_prefix = table.shape[1] - old[0] * old[1]
    resized: Tensor = resample_abs_pos_embed(table, new, old_size=old, num_prefix_tokens=num_prefix)
    return resized if positions.ndim == 3 else resized[0]
