"""Tiny-ImageNet at 32 pixels from `tiny_imagenet_32.npz`: JPEG scans behind one common header."""

from __future__ import annotations

from pathlib import Path

import numpy as np


class Archive:
    """The images of one split ("train" or "val") as JPEG files.

    Shapes: labels (n,); wnids (200,), the WordNet name of each class.
    """

    def __init__(self, shared: Path, split: str) -> None:
        content = np.load(shared / "backbones" / "tiny_imagenet_32.npz")
        self._header, self._scans = (
            content[name].tobytes() for name in ("jpeg_header", f"{split}_scans")
        )
        self._offsets = content[f"{split}_offsets"]
        self.labels, self.wnids = content[f"{split}_labels"], content["wnids"]

    def file(self, index: int) -> bytes:
        """One image as a JPEG file."""
        return self._header + self._scans[self._offsets[index] : self._offsets[index + 1]]
