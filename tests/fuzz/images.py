"""Images of every container that is read, and what may be odd about one."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from damage import damage
from PIL import Image

from vitune.data.formats import image_formats

CONTAINERS = {
    "JPEG": ".jpg", "PNG": ".png", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp",
    "PPM": ".ppm", "AVIF": ".avif", "HEIF": ".heic",
}  # fmt: skip


def containers() -> list[str]:
    """Pillow's names of the containers that this installation reads."""
    return [name for name in CONTAINERS if name in image_formats()]


def write_image(path: Path, container: str, name: str, *parameters: Any) -> None:
    """An image that is odd in the way that the draw says."""
    mode = str(parameters[0]) if name == "mode" else "RGB"
    shape = tuple(parameters[0]) if name == "shape" else (16, 16)
    data = _encoded(container, mode, shape)
    if name == "other_kind":
        kinds = containers()
        data = _encoded(kinds[parameters[0] % len(kinds)], "RGB", shape)
    elif name == "size":
        data = _with_size(data, parameters[0])
    elif name == "header":
        place, value = parameters
        data = data[:place] + bytes([value]) + data[place + 1 :]
    elif name == "exif":
        data = _encoded(container, "RGB", shape, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    path.write_bytes(data)
    if name not in ("mode", "shape", "other_kind", "size", "header", "exif"):
        damage(path, name, *parameters)


def _encoded(container: str, mode: str, shape: tuple[int, int], exif: bytes = b"") -> bytes:
    """Some colours in that mode, or in RGB where the container has no such mode."""
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    plain = Image.fromarray(pixels)
    for tried in (mode, "RGB"):
        out = io.BytesIO()
        try:
            image = plain if tried == "RGB" else plain.convert("L").convert(tried)
            image.save(out, container, **({"exif": exif} if exif else {}))
        except (OSError, ValueError, KeyError):
            continue
        return out.getvalue()
    raise AssertionError(container)


def _with_size(data: bytes, size: int) -> bytes:
    """Every place that says 16 as a 16- or 32-bit number says `size`; the header is among them."""
    head, rest = data[:400], data[400:]
    for form in (">I", "<I", ">H", "<H"):
        largest = 2 ** (8 * struct.calcsize(form)) - 1
        head = head.replace(struct.pack(form, 16), struct.pack(form, min(size, largest)), 4)
    return head.replace(b"16 16", b"%d %d" % (size, size)) + rest
