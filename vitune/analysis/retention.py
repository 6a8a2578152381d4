"""How much of the base an adapted network retains, measured on unlabelled images."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitune.analysis.features import HEAD_INPUT, Features, has_class_token, recording
from vitune.analysis.pairs import tuner_layers
from vitune.analysis.similarity import linear_cka
from vitune.errors import VituneError

MIN_IMAGES = 4


@dataclass(frozen=True)
class BlockRetention:
    """Linear CKA between a block's outputs in the base and in the adapted network.

    Args:
        name: the block's module name in the network without adapters.
        block: index over depth.
        cka: in [0, 1]; 1 if the features are the same up to rotation and one scale. None if a
            feature does not vary over the images. With fewer images than features it is biased
            upwards.
        cka_debiased: the same from the unbiased estimator; can fall slightly below 0.
    """

    name: str
    block: int
    cka: float | None
    cka_debiased: float | None


@dataclass(frozen=True)
class Retention:
    """How much of the base an adaptation kept on given images.

    Args:
        blocks: one entry per block, in order of depth.
        feature: "class" if the class token represents an image, "mean" for the mean over tokens or
            positions.
        num_images: images seen.
        decisions_kept: share, in [0, 1], of images on which the base's head predicts the same from
            base and adapted features; None without such a head.
    """

    blocks: tuple[BlockRetention, ...]
    feature: str
    num_images: int
    decisions_kept: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@torch.no_grad()
def measure_retention(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    tuned: nn.Module | None = None,
    head: nn.Module | None = None,
    max_images: int = 1024,
) -> Retention:
    """CKA per block between base and adapted features, and the share of the base's decisions that
    are kept.

    The feature of an image is the class token of a block's output if the network has one, else the
    mean over tokens (or over positions of a map). The models run in evaluation mode and are
    restored afterwards.

    Shapes: images, batches (b, 3, h, w).

    Args:
        model: a PEFT model, whose base is itself with `disable_adapter()`; or, with `tuned`, the
            base network.
        images: normalised float batches, as the backbone expects them; read until `max_images`.
        tuned: the adapted network, of the same architecture.
        head: the base's pre-trained classifier, which gets the input of the network's own head.
            Pass none if the base's head is untrained: its decisions would mean nothing.
        max_images: bounds memory, which grows with images times blocks times width.

    Raises:
        BackboneError: no blocks are recognised in the network.
        VituneError: a plain `model` without `tuned`, fewer than four images, or a `head` for a
            network whose features are not vectors.
    """
    model = _unmerged(model, tuned)
    with ExitStack() as stack:
        networks = [network for network in (model, tuned, head) if network is not None]
        for network in networks:
            stack.enter_context(_left_as_it_was(network))
        base = stack.enter_context(recording(model, head is not None))
        adapted = base if tuned is None else stack.enter_context(recording(tuned, head is not None))
        seen: tuple[list[Features], list[Features]] = ([], [])
        for batch in _limited(images, max_images):
            if tuned is None:
                with model.disable_adapter():  # type: ignore[operator]
                    seen[0].append(base(batch))
            else:
                seen[0].append(base(batch))
            seen[1].append(adapted(batch))
        return _compared(seen, head, "class" if has_class_token(model) else "mean")


def _compared(
    seen: tuple[list[Features], list[Features]], head: nn.Module | None, feature: str
) -> Retention:
    base, adapted = (_joined(batches) for batches in seen)
    num_images = len(next(iter(base.values()))) if base else 0
    if num_images < MIN_IMAGES:
        raise VituneError(
            f"images: got {num_images!r}, expected at least {MIN_IMAGES} to compare features on."
        )
    kept = None
    if head is not None:
        decisions = [_decisions(head, features.pop(HEAD_INPUT)) for features in (base, adapted)]
        kept = float((decisions[0] == decisions[1]).double().mean())
    blocks = tuple(
        BlockRetention(
            name=name,
            block=index,
            cka=linear_cka(old, new),
            cka_debiased=linear_cka(old, new, debiased=True),
        )
        for index, ((name, old), new) in enumerate(zip(base.items(), adapted.values(), strict=True))
    )
    return Retention(blocks, feature, num_images, kept)


def _unmerged(model: nn.Module, tuned: nn.Module | None) -> nn.Module:
    """The model, or a copy without adapters if they are merged into it."""
    if tuned is not None:
        return model
    if not hasattr(model, "disable_adapter"):
        raise VituneError(
            f"model: got {type(model).__name__!r} without adapters, expected a PEFT model, or "
            "tuned=... with the adapted network."
        )
    if any(layer.merged for layer in tuner_layers(model)):
        model = copy.deepcopy(model)
        model.unmerge_adapter()  # type: ignore[operator]
    return model


@contextmanager
def _left_as_it_was(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; modes and `requires_grad` (which PEFT toggles) are restored after."""
    modes = {module: module.training for module in network.modules()}
    flags = {parameter: parameter.requires_grad for parameter in network.parameters()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _decisions(head: nn.Module, features: Tensor) -> Tensor:
    place = next(head.parameters())
    decisions: Tensor = head(features.to(place.device, place.dtype)).argmax(-1).cpu()
    return decisions


def _limited(images: Iterable[Tensor], most: int) -> Iterator[Tensor]:
    """Batches up to `most` images, with the last one cut."""
    left = most
    for batch in images:
        yield batch[:left]
        left -= len(batch)
        if left <= 0:
            return


def _joined(batches: list[Features]) -> Features:
    by_name: defaultdict[str, list[Tensor]] = defaultdict(list)
    for features in batches:
        for name, tensor in features.items():
            by_name[name].append(tensor)
    return {name: torch.cat(tensors) for name, tensors in by_name.items()}
