"""One image from file to uint8 pixels: header check, orientation, RGB, resize, crop."""

from __future__ import annotations

import hashlib
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

from vitune.data.formats import image_formats
from vitune.data.records import Drawing, Pixels
from vitune.errors import DataError
from vitune.preprocessing import Preprocessing

MAX_MEGAPIXELS = 100.0

T = TypeVar("T")

_PILLOW_LIMIT = 178.0
_BITS_PER_SAMPLE = 258
_LARGEST_GREY = (281, 341)
"""TIFF's tags MaxSampleValue and SMaxSampleValue."""
RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Decoding:
    """The settings that determine an image's decoded pixels.

    Args:
        preprocessing: image size, interpolation and crop; mean and std play no part here.
        resize_to: (height, width) to keep instead of the image size, for augmentations that cut
            a random window later; the centre crop is then left out.
        max_megapixels: larger images are refused after reading their header; in (0, 178].

    Raises:
        DataError: a limit out of range, an image size above it, or `resize_to` below that size.
    """

    preprocessing: Preprocessing
    resize_to: tuple[int, int] | None = None
    max_megapixels: float = MAX_MEGAPIXELS

    def __post_init__(self) -> None:
        if not 0 < self.max_megapixels <= _PILLOW_LIMIT:
            raise DataError(
                f"max_megapixels: got {self.max_megapixels!r}, expected a number in "
                f"(0, {_PILLOW_LIMIT:g}]; Pillow refuses anything larger."
            )
        needed = self.preprocessing.image_size
        if needed[0] * needed[1] > self.max_megapixels * 1e6:
            raise DataError(
                f"image size: got {needed[0]} x {needed[1]} pixels, expected at most "
                f"{self.max_megapixels:g} megapixels."
            )
        if self.resize_to and (self.resize_to[0] < needed[0] or self.resize_to[1] < needed[1]):
            raise DataError(
                f"resize_to: got {self.resize_to!r}, expected at least the image size {needed}."
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pixels kept."""
        return self.resize_to or self.preprocessing.image_size

    @property
    def resized_size(self) -> tuple[int, int]:
        """(height, width) before the centre crop."""
        return self.resize_to or self.preprocessing.resize_size


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings (odd EXIF, palettes, large images) off the user's terminal.

    Warning filters belong to the process: enter it around a thread pool, not inside its workers.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode_image(image: Path | Drawing, decoding: Decoding) -> tuple[Pixels, bytes]:
    """Pixels and content hash of a file or drawing; Pillow may warn unless `quiet_pillow` is
    active.

    Returns:
        pixels: (height, width, 3) uint8 of `decoding.size`.
        digest: sha256 of the file's bytes, or of the drawing's content.

    Raises:
        DataError: a missing, corrupt, truncated or too large file; the message names it.
    """
    if not isinstance(image, Path):
        height, width = decoding.size
        return image.pixels(height, width), hashlib.sha256(image.content).digest()
    return read_image(
        image, decoding.max_megapixels, lambda opened: _fitted(opened, decoding, image)
    )


def decode_bytes(content: bytes, decoding: Decoding, name: str) -> Pixels:
    """Pixels of an image in memory, such as an upload; errors call it `name`.

    Returns:
        (height, width, 3) uint8 of `decoding.size`.

    Raises:
        DataError: an image that is corrupt, truncated, too large or of an unknown kind.
    """
    with _told(name, decoding.max_megapixels):
        return _made(
            BytesIO(content),
            name,
            decoding.max_megapixels,
            lambda opened: _fitted(opened, decoding, name),
        )


def read_image(
    path: Path, max_megapixels: float, made: Callable[[Image.Image], T]
) -> tuple[T, bytes]:
    """The result of `made` for the upright RGB image in a file, and the sha256 of the file's bytes.

    Raises:
        DataError: a missing, corrupt, truncated or too large file; the message names it.
    """
    with _told(path, max_megapixels):
        _require_regular(path)
        with path.open("rb") as file:
            result = _made(file, path, max_megapixels, made)
            file.seek(0)
            return result, hashlib.file_digest(file, "sha256").digest()


def _made(
    file: IO[bytes], name: Path | str, max_megapixels: float, made: Callable[[Image.Image], T]
) -> T:
    with Image.open(file, formats=image_formats()) as opened:
        _require_within(opened.size, max_megapixels, name)
        return made(_upright_rgb(opened))


@contextmanager
def _told(name: Path | str, max_megapixels: float) -> Iterator[None]:
    """Within the context, any error of Pillow becomes a DataError that names the image."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise _too_large(f"over {_PILLOW_LIMIT:g}", max_megapixels, name) from None
    except Image.UnidentifiedImageError:
        raise _broken(name, "UnidentifiedImageError", "no kind of image that is read") from None
    except Exception as error:  # Pillow's readers raise almost anything on broken bytes
        reason = " ".join(str(error).split()).replace(str(name), "").strip(" :'") or "no reason"
        raise _broken(name, type(error).__name__, reason) from None


def _broken(name: Path | str, what: str, reason: str) -> DataError:
    return DataError(
        f"image {str(name)!r}: got {what} ({reason}), expected an intact image file. Repair or "
        f"remove it{_or_skip(name)}."
    )


def _upright_rgb(opened: Image.Image) -> Image.Image:
    """Rotated by its EXIF orientation, in RGB, laid on white where it is transparent.

    Pillow's conversion alone would show what lies behind transparent pixels, usually black: a black
    drawing on nothing would become a black square.
    """
    opened.load()
    with suppress(Exception):  # a broken EXIF block does not mean broken pixels
        ImageOps.exif_transpose(opened, in_place=True)
    if opened.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if opened.mode.startswith("I"):
        return _from_deep_greys(opened)
    if opened.has_transparency_data:
        seen, white = opened.convert("RGBA"), Image.new("RGB", opened.size, "white")
        white.paste(seen, mask=seen)
        return white
    return opened.convert("RGB")


def _from_deep_greys(image: Image.Image) -> Image.Image:
    """The upper 8 bits of deeper greys; Pillow's own conversion would clip them to white."""
    greys = np.asarray(image).astype(np.int64) * 256 >> _grey_bits(image)
    return Image.fromarray(np.clip(greys, 0, 255).astype(np.uint8)).convert("RGB")


def _grey_bits(image: Image.Image) -> int:
    """The bit depth of white: as declared by a TIFF; Pillow scales other formats to 16.

    A declared maximum says how many of a container's bits are in use.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return 16
    largest = max((_first(tags, tag) for tag in _LARGEST_GREY), default=0)
    if largest > 0:
        return largest.bit_length()
    if image.mode == "I":
        raise ValueError("32-bit pixels without a declared range; save the image with 8 bits")
    return _first(tags, _BITS_PER_SAMPLE) or 16


def _first(tags: Mapping[int, Any], tag: int) -> int:
    value = tags.get(tag, 0)
    return int(value[0] if isinstance(value, tuple) else value)


def _fitted(image: Image.Image, decoding: Decoding, name: Path | str) -> Pixels:
    """Resized as in the preprocessing and centre-cropped."""
    height, width = decoding.resized_size
    if decoding.preprocessing.crop_mode == "center":
        height, width = covering(image.height, image.width, height, width)
        _require_within((width, height), decoding.max_megapixels, name)
    method = RESAMPLING[decoding.preprocessing.interpolation]
    resized = image.resize((width, height), method)
    kept_height, kept_width = decoding.size
    top, left = round((height - kept_height) / 2), round((width - kept_width) / 2)
    return np.asarray(resized)[top : top + kept_height, left : left + kept_width]


def covering(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int]:
    """The smallest size of the image's own aspect that covers (to_height, to_width)."""
    if height * to_width <= width * to_height:
        return to_height, max(to_width, int(to_height * width / height))
    return max(to_height, int(to_width * height / width)), to_width


def _require_regular(path: Path) -> None:
    """Refuse a pipe or a device, which could be read forever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(
            f"image {str(path)!r}: got a pipe, device or folder, expected a regular file. Remove "
            "it, or pass --skip-bad-images."
        )


def _require_within(size: tuple[int, int], most: float, name: Path | str) -> None:
    """Refuse (width, height) of more than `most` megapixels, before any pixel is allocated."""
    megapixels = size[0] * size[1] / 1e6
    if megapixels > most:
        raise _too_large(f"{megapixels:.1f}", most, name)


def _too_large(megapixels: str, most: float, name: Path | str) -> DataError:
    return DataError(
        f"image {str(name)!r}: got {megapixels} megapixels, expected at most {most:g}. "
        f"Shrink it{_or_skip(name)}."
    )


def _or_skip(name: Path | str) -> str:
    """The remedy that exists for a folder of images but not for an upload."""
    return ", or pass --skip-bad-images" if isinstance(name, Path) else ""
