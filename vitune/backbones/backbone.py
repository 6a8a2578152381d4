"""The record of a loaded backbone, the options for loading, and backbones from local files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vitune.backbones.google_npz import load_google_npz, npz_num_classes, npz_shapes
from vitune.backbones.heads import num_outputs, zero_heads
from vitune.backbones.rehearsal import rehearsed
from vitune.backbones.weight_file import converted, load_state, num_head_classes, read_state
from vitune.backbones.wording import one_line
from vitune.errors import BackboneError
from vitune.preprocessing import Preprocessing

_QUICK_PASS = 10**10
"""Parameters times pixels; below this one real pass takes less time than copying the network."""


@dataclass(frozen=True)
class Backbone:
    """A network with everything needed to feed it and to find it again.

    Args:
        model: the network, in evaluation mode, all parameters as loaded.
        name: loads the same weights again through `load_backbone`.
        preprocessing: from the checkpoint's own configuration, at the image size asked for.
        num_classes: outputs of the head; 0 if the network returns features.
        source: where the weights came from, in words.
        notices: what was left out or assumed on loading, one sentence each.
    """

    model: nn.Module
    name: str
    preprocessing: Preprocessing
    num_classes: int
    source: str
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """The options for loading a backbone, validated.

    Args:
        num_classes: outputs of a new head, at least 1; None keeps the checkpoint's head.
        image_size: (height, width) in pixels; None means the checkpoint's.
        pretrained: False leaves random weights, for tests and training from scratch.
        drop_path: stochastic depth, in [0, 1).

    Raises:
        BackboneError: a value outside its range.
    """

    num_classes: int | None = None
    image_size: tuple[int, int] | None = None
    pretrained: bool = True
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 1:
            raise BackboneError(
                f"num_classes: got {self.num_classes!r}, expected at least 1, or None to keep "
                f"the checkpoint's head."
            )
        if self.image_size is not None and min(self.image_size) < 1:
            raise BackboneError(
                f"image_size: got {self.image_size!r}, expected a positive number of pixels, "
                f"or (height, width)."
            )
        if not 0 <= self.drop_path < 1:
            raise BackboneError(f"drop_path: got {self.drop_path!r}, expected a rate in [0, 1).")


Build = Callable[[int | None], nn.Module]
"""A network of one architecture with random weights; the argument is the number of classes."""


def build_from_file(build: Build, path: Path, num_classes: int | None) -> tuple[nn.Module, str]:
    """A network with the weights of `path`, and a sentence about its head ('' when it was kept).

    The file's head is kept if `num_classes` is None or its own class count, and replaced by a zero
    one otherwise.

    Raises:
        BackboneError: the file cannot be read, or is not of this architecture.
    """
    probe = build(num_classes or 1)
    state: dict[str, torch.Tensor] = {}
    if path.suffix == ".npz":
        shapes = npz_shapes(path)
        held = npz_num_classes(shapes)
    else:
        state = converted(probe, read_state(path), path)
        held = num_head_classes(probe, state)
    wanted = held or 0 if num_classes is None else num_classes
    model = probe if wanted == num_outputs(probe) else build(wanted)
    zero_heads(model)
    if path.suffix == ".npz":
        load_google_npz(model, path, shapes)
    else:
        load_state(model, state, path, keep_head=wanted == held)
    if wanted == held or held is None:
        return model, ""
    return model, f"The head of {path.name} ({held} classes) was left out: {wanted} are requested."


def check_image_size(model: nn.Module, size: tuple[int, int], name: str) -> None:
    """Send one black image of `size` through the model, without computing if that is cheaper.

    Raises:
        BackboneError: the model does not take images of that size.
    """
    model.eval()
    num_parameters = sum(value.numel() for value in model.parameters())
    if num_parameters * size[0] * size[1] > _QUICK_PASS:
        with suppress(Exception), rehearsed(model) as played, torch.no_grad():
            played(torch.empty(1, 3, *size))
            return
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, *size))
    except Exception as error:
        raise BackboneError(
            f"image_size: got {size} for {name}, expected a size this network takes. "
            f"It answered: {one_line(error)}"
        ) from error
