"""The frozen network's features that the classifier reads, computed once per split."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.backbones import head_name
from vitune.data import Split, batches, default_cache_dir, normalise
from vitune.errors import BackboneError, TrainingError
from vitune.preprocessing import Preprocessing

BATCH = 128
View = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]


def mirrored(images: Tensor) -> Tensor:
    """Shapes: (b, 3, h, w), returned with the same shape, mirrored left to right."""
    return images.flip(-1)


class FeatureReader:
    """Computes the inputs of the head of `model` for images as in training.

    Args:
        model: the backbone, before any adapter is attached.
        budget_mib: features larger than this are kept in a file of the cache folder while in use;
            None is a quarter of the available memory.

    Raises:
        BackboneError: a network without a classifier, or with one that reads a feature map.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        device: torch.device | str,
        budget_mib: int | None = None,
    ) -> None:
        name = head_name(model)
        if name is None:
            raise BackboneError(
                "probe: got a backbone without a classifier, expected one with a linear head."
            )
        self.model, self.preprocessing, self.device = model, preprocessing, torch.device(device)
        self.head = model.get_submodule(name)
        self.budget = _budget(budget_mib)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._num_files = 0

    def __enter__(self) -> FeatureReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def __call__(
        self, split: Split, *, views: tuple[View | None, ...] = (None,),
        on_progress: Progress | None = None,
    ) -> Any:  # fmt: skip
        """The features of all images, one view after the other.

        Args:
            views: changes of uint8 images; None leaves them as they are.

        Shapes: returns (v · n, d) float32, an array or a memory map.

        Raises:
            BackboneError: the head reads more than one vector per image.
            TrainingError: a feature is NaN or infinite.
        """
        total = len(split) * len(views)
        found: Any = None
        done = 0
        self.model.to(self.device)
        was_training = self.model.training
        self.model.eval()
        try:
            for part in self._parts(split, views):
                if found is None:
                    found = self._room(total, part.shape[1])
                found[done : done + len(part)] = part
                done += len(part)
                if on_progress is not None:
                    on_progress(done, total)
        finally:
            self.model.train(was_training)
        return found

    @torch.no_grad()
    def _parts(self, split: Split, views: tuple[View | None, ...]) -> Iterator[np.ndarray]:
        with _caught(self.head) as seen:
            for view in views:
                for batch in batches(split, BATCH):
                    images = _as_judged(batch["images"], self.preprocessing)
                    images = images if view is None else view(images)
                    self.model(normalise(images, self.preprocessing, device=self.device))
                    features = seen.pop()
                    if features.dim() != 2:
                        raise BackboneError(
                            f"probe: got features of shape {tuple(features.shape)}, expected one "
                            "vector per image. Use --start plain and a method that trains by "
                            "gradient steps."
                        )
                    if not features.isfinite().all():
                        raise TrainingError(
                            "probe: got features that are not finite, expected numbers. The "
                            "backbone's weights may be damaged."
                        )
                    yield features.float().cpu().numpy()

    def _room(self, rows: int, width: int) -> Any:
        """Storage for features: in memory, or in a file if they are larger than the budget."""
        if rows * width * 4 <= self.budget:
            return np.empty((rows, width), np.float32)
        if self._folder is None:
            default_cache_dir().mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(
                prefix="features-", dir=default_cache_dir(), ignore_cleanup_errors=True
            )
        self._num_files += 1
        path = Path(self._folder.name) / f"{self._num_files}.bin"
        return np.memmap(path, np.float32, "w+", shape=(rows, width))


def _as_judged(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Images kept larger for random windows, cut and scaled as validation images are.

    Shapes: images (b, 3, h, w) uint8; returns (b, 3, height, width) of the image size, uint8.
    """
    size, kept = preprocessing.image_size, images.shape[2:]
    if kept == size:
        return images
    whole = preprocessing.resize_size
    height, width = (round(kept[i] * size[i] / whole[i]) for i in (0, 1))
    top, left = (kept[0] - height) // 2, (kept[1] - width) // 2
    images = images[:, :, top : top + height, left : left + width]
    if (height, width) == size:
        return images
    scaled = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)


@contextmanager
def _caught(head: nn.Module) -> Iterator[list[Tensor]]:
    """Within the context: the inputs of `head`, newest last."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def _budget(mib: int | None) -> float:
    """Bytes of features that may be kept in memory."""
    if mib is not None:
        return mib * 2**20
    pages = os.sysconf("SC_AVPHYS_PAGES") if hasattr(os, "sysconf") else 2**18
    return pages * 4096 / 4
