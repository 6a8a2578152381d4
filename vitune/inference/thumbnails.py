"""Small pictures for reports."""

from __future__ import annotations

import base64
import io

from PIL import Image

from vitune.data import Split

SIDE = 96


def thumbnail(split: Split, index: int) -> str:
    """A PNG data URL of one image as the network saw it, at most SIDE pixels wide and high."""
    image = Image.fromarray(split.images[index])
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
