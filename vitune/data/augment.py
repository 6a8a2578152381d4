"""Random augmentation of whole batches on their device, determined by a torch.Generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vitune.errors import DataError, nearest

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augment:
    """Flip, random window or random resized crop, and colour jitter; all off by default.

    Each change draws from its own column of one block of random numbers, so that switching one on
    does not affect the others. Windows and crops are cut from the decoded array, or with
    `from_files` from the image files themselves (`FileViews`): slower, but with exactly the pixels
    that torchvision's transforms give.

    Args:
        flip_rate: probability of a horizontal flip, in [0, 1].
        padding_pixels: reflected border from which a window of the image size is cut.
        enlarge: training images are kept at enlarge x image size (at least 1), and a random
            window of the image size is cut.
        scale_range: (least, most) fraction of the area that a random resized crop keeps, in
            (0, 1]; None is off. Its aspect is drawn from 3/4 to 4/3, clipped to the image.
        jitter: s in [0, 1]: brightness, contrast and saturation are multiplied by factors in [1 -
            s, 1 + s].
        from_files: cut each window or crop from the whole image, decoded again every time.

    Raises:
        DataError: a value outside its range, a border together with a resized crop, or nothing
            to cut from files.
    """

    flip_rate: float = 0.0
    padding_pixels: int = 0
    enlarge: float = 1.0
    scale_range: tuple[float, float] | None = None
    jitter: float = 0.0
    from_files: bool = False

    def __post_init__(self) -> None:
        for name in ("flip_rate", "jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name}: got {getattr(self, name)!r}, expected 0 to 1.")
        if self.padding_pixels < 0:
            raise DataError(f"padding_pixels: got {self.padding_pixels!r}, expected 0 or more.")
        if not 1 <= self.enlarge <= 4:
            raise DataError(f"enlarge: got {self.enlarge!r}, expected 1 to 4.")
        if self.scale_range and not 0 < self.scale_range[0] <= self.scale_range[1] <= 1:
            raise DataError(
                f"scale_range: got {self.scale_range!r}, expected 0 < least <= most <= 1."
            )
        if self.scale_range and self.padding_pixels:
            raise DataError(
                f"padding_pixels: got {self.padding_pixels} together with scale_range, expected "
                "only one of the two."
            )
        if self.from_files and (self.padding_pixels or not (self.scale_range or self.enlarge > 1)):
            raise DataError("from_files: got it without a window or resized crop, expected one.")

    def train_size(self, image_size: tuple[int, int]) -> tuple[int, int] | None:
        """(height, width) to keep training images at; None is the image size itself."""
        if self.enlarge == 1 or self.from_files:
            return None
        return round(image_size[0] * self.enlarge), round(image_size[1] * self.enlarge)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The batch with its random changes, in the dtype it came in.

        Args:
            images: uint8, or floating point in [0, 1].
            generator: determines everything; may be on another device than the images.

        Shapes:
            images: (b, 3, height, width), cut to size already with `from_files`; returns
                (b, 3, height / enlarge, width / enlarge).

        Raises:
            DataError: a border at least as wide as the image.
        """
        if self == Augment():
            return images
        drawn = torch.rand(8, len(images), generator=generator, device=generator.device)
        drawn = drawn.to(images.device)
        enlarge = 1 if self.from_files else self.enlarge
        size = (round(images.shape[2] / enlarge), round(images.shape[3] / enlarge))
        flip = drawn[0] < self.flip_rate
        if self.scale_range and not self.from_files:
            images = _as_given(_resized_crop(images, size, self.scale_range, flip, drawn), images)
        elif flip.any() or self.padding_pixels or enlarge > 1:
            images = _window(images, size, self.padding_pixels, flip, drawn)
        if self.jitter:
            images = _as_given(_jittered(_unit(images), self.jitter, drawn), images)
        return images


PRESETS: dict[str, Callable[[tuple[int, int]], Augment]] = {
    "auto": lambda size: Augment(),  # until training has examined the images
    "none": lambda size: Augment(),
    "shift": lambda size: Augment(padding_pixels=min(size) // 16),
    "flip": lambda size: Augment(flip_rate=0.5),
    "crop_flip": lambda size: Augment(flip_rate=0.5, padding_pixels=min(size) // 8),
    "fgvc": lambda size: Augment(flip_rate=0.5, enlarge=256 / 224),
    "strong": lambda size: Augment(flip_rate=0.5, scale_range=(0.35, 1.0), jitter=0.4),
    "window": lambda size: Augment(flip_rate=0.5, enlarge=256 / 224, from_files=True),
    "resized_crop": lambda size: Augment(flip_rate=0.5, scale_range=(0.08, 1.0), from_files=True),
}


def augmentation(name: str, image_size: tuple[int, int]) -> Augment:
    """The preset `name` for an image size, one of PRESETS.

    Raises:
        DataError: unknown name.
    """
    if name not in PRESETS:
        raise DataError(f"augmentation: got {name!r}, expected a preset. {nearest(name, PRESETS)}")
    return PRESETS[name](image_size)


def _window(
    images: Tensor, size: tuple[int, int], padding: int, flip: Tensor, drawn: Tensor
) -> Tensor:
    """A random window of `size` from the reflected image, flipped or not, in one gather."""
    height, width = images.shape[2:]
    if padding >= min(height, width):
        raise DataError(
            f"padding_pixels: got {padding}, expected less than the image's {min(height, width)}."
        )
    ys = _places(height, size[0], padding, drawn[1])  # (b, h)
    xs = _places(width, size[1], padding, drawn[2])  # (b, w)
    xs = torch.where(flip[:, None], xs.flip(1), xs)
    which = torch.arange(len(images), device=images.device)
    pixels = images.permute(0, 2, 3, 1)  # (b, H, W, 3)
    cut = pixels[which[:, None, None], ys[:, :, None], xs[:, None, :]]  # (b, h, w, 3)
    return cut.permute(0, 3, 1, 2)  # (b, 3, h, w)


def _places(length: int, kept: int, padding: int, drawn: Tensor) -> Tensor:
    """(b, kept) source indices of windows that may reach `padding` past either end."""
    choices = length - kept + 2 * padding + 1
    start = (drawn * choices).long().clamp(max=choices - 1) - padding
    places = start[:, None] + torch.arange(kept, device=drawn.device)
    return (length - 1) - ((length - 1) - places.abs()).abs()


def _resized_crop(
    images: Tensor,
    size: tuple[int, int],
    scale_range: tuple[float, float],
    flip: Tensor,
    drawn: Tensor,
) -> Tensor:
    """A box of random area, aspect and position, sampled bilinearly at `size`; floats in [0, 1]."""
    least, most = scale_range
    area = least + (most - least) * drawn[3]
    aspect = (4 / 3) ** (2 * drawn[4] - 1)
    tall = (area / aspect).sqrt().clamp(max=1)
    wide = (area * aspect).sqrt().clamp(max=1)
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0] = torch.where(flip, -wide, wide)
    theta[:, 0, 2] = (1 - wide) * (2 * drawn[2] - 1)
    theta[:, 1, 1] = tall
    theta[:, 1, 2] = (1 - tall) * (2 * drawn[1] - 1)
    shape = [len(images), images.shape[1], *size]
    grid = functional.affine_grid(theta, shape, align_corners=False)  # (b, h, w, 2)
    pixels = _unit(images).contiguous()
    return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def _jittered(pixels: Tensor, strength: float, drawn: Tensor) -> Tensor:
    """Brightness, then contrast about the grey mean, then saturation, clipped to [0, 1]."""
    factors = 1 + strength * (2 * drawn[5:8] - 1)
    brightness, contrast, saturation = factors.view(3, -1, 1, 1, 1).to(pixels.dtype)
    luma = torch.tensor(_LUMA, device=pixels.device, dtype=pixels.dtype).view(1, 3, 1, 1)
    pixels = pixels * brightness
    mean = (pixels * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * contrast
    grey = (pixels * luma).sum(1, keepdim=True)
    return (grey + (pixels - grey) * saturation).clamp(0, 1)


def _unit(images: Tensor) -> Tensor:
    """Floats in [0, 1]."""
    return images.float() if images.is_floating_point() else images.float() / 255


def _as_given(pixels: Tensor, given: Tensor) -> Tensor:
    """Floats in [0, 1] in the dtype of `given`."""
    if given.is_floating_point():
        return pixels.to(given.dtype)
    return (pixels * 255).round().clamp(0, 255).to(given.dtype)
