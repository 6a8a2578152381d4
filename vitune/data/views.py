"""Training views cut from the image files themselves, decoded again for every batch.

The decoded array of a split has one size for all images. A random window along the longer side, or
a random resized crop at full resolution, needs the whole image: this module makes such views.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitune.data.augment import Augment
from vitune.data.decode import MAX_MEGAPIXELS, RESAMPLING, covering, quiet_pillow, read_image
from vitune.data.records import Drawing, Pixels
from vitune.data.split import Split
from vitune.errors import DataError
from vitune.preprocessing import Preprocessing

ATTEMPTS = 10
ASPECT = 4 / 3
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
"""A resized crop draws its filter from these with probability 1/2 each."""

Draws = list[float]
"""Uniform in [0, 1): place down, place right, filter, then (area, aspect) for each attempt."""


class FileViews:
    """Windows or resized crops of a split's images, for `augment.from_files`.

    Args:
        split: of training; its `sources` are read.
        preprocessing: input size, and for windows the resize before it.
        augment: with `enlarge` or `scale_range`; flips and jitter are left to it.
    """

    def __init__(self, split: Split, preprocessing: Preprocessing, augment: Augment) -> None:
        self.split, self.preprocessing, self.augment = split, preprocessing, augment
        self.num_workers = min(8, os.cpu_count() or 1)

    def __call__(self, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        """The images at `indices`, each cut at a position drawn from the generator.

        Shapes: returns (b, 3, height, width) uint8, of the input size.

        Raises:
            DataError: the split has no files, or one changed since it was checked.
        """
        if self.split.sources is None:
            raise DataError(
                f"augmentation: got split {self.split.name!r} without its files, expected a "
                "split of files. Choose an augmentation that cuts from decoded images."
            )
        drawn = torch.rand(
            len(indices), 3 + 2 * ATTEMPTS, generator=generator, device=generator.device
        ).tolist()
        with quiet_pillow(), ThreadPoolExecutor(self.num_workers) as pool:
            views = list(pool.map(self._view, indices, drawn))
        return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)

    def _view(self, index: int, draws: Draws) -> Pixels:
        assert self.split.sources is not None
        source = self.split.sources[index]
        if not isinstance(source, Path):
            return self._cut(self._drawn(source), draws)
        view, digest = read_image(source, MAX_MEGAPIXELS, lambda image: self._cut(image, draws))
        checked = self.split.digests
        if checked is not None and digest != checked[index].tobytes():
            raise DataError(
                f"image {str(source)!r}: got other bytes than when the run began, expected an "
                "unchanged file. Start the run again."
            )
        return view

    def _drawn(self, drawing: Drawing) -> Image.Image:
        """A drawn picture has no size of its own: it is rendered at twice the input size."""
        height, width = self.preprocessing.image_size
        return Image.fromarray(drawing.pixels(2 * height, 2 * width))

    def _cut(self, image: Image.Image, draws: Draws) -> Pixels:
        if self.augment.scale_range:
            return self._resized_crop(image, draws)
        return self._window(image, draws)

    def _window(self, image: Image.Image, draws: Draws) -> Pixels:
        """A window of the input size at a random position in the resized image."""
        height, width = self.preprocessing.image_size
        enlarge = self.augment.enlarge
        full = round(height * enlarge), round(width * enlarge)
        if self.preprocessing.crop_mode == "center":
            full = covering(image.height, image.width, *full)
        resized = image.resize(full[::-1], RESAMPLING[self.preprocessing.interpolation])
        top, left = _place(full[0] - height, draws[0]), _place(full[1] - width, draws[1])
        return np.asarray(resized)[top : top + height, left : left + width]

    def _resized_crop(self, image: Image.Image, draws: Draws) -> Pixels:
        """A random box, resized to the input size with a random filter."""
        assert self.augment.scale_range is not None
        left, top, width, height = crop_box(image.size, self.augment.scale_range, draws)
        box = image.crop((left, top, left + width, top + height))
        method = FILTERS[_place(len(FILTERS) - 1, draws[2])]
        return np.asarray(box.resize(self.preprocessing.image_size[::-1], method))


def crop_box(
    size: tuple[int, int], scale_range: tuple[float, float], draws: Draws
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random resized crop of an image of `size` (width, height).

    Area uniform in `scale_range` of the image's, log aspect uniform between those of 3/4 and 4/3.
    The first of ATTEMPTS draws that fits is taken; else the largest centred box of that aspect.

    Source: the rule of torchvision's and timm's RandomResizedCrop.
    """
    full_width, full_height = size
    least, most = scale_range
    for attempt in range(ATTEMPTS):
        area, aspect = draws[3 + 2 * attempt : 5 + 2 * attempt]
        wanted = (least + (most - least) * area) * full_width * full_height
        ratio = ASPECT ** (2 * aspect - 1)
        width, height = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
        if 0 < width <= full_width and 0 < height <= full_height:
            left = _place(full_width - width, draws[1])
            return left, _place(full_height - height, draws[0]), width, height
    width = min(full_width, round(full_height * ASPECT))
    height = min(full_height, round(full_width * ASPECT))
    return (full_width - width) // 2, (full_height - height) // 2, width, height


def _place(most: int, drawn: float) -> int:
    """A whole number from 0 to `most`, uniformly."""
    return min(int(drawn * (most + 1)), most)
