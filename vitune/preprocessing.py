"""How pixels become a backbone's input: one record, stored and reused with every adapter."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from vitune.errors import VituneError

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")

PIXEL_STATS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and std by name, of pixels scaled to [0, 1]."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize to `resize_size`, centre-crop to `image_size`, scale to [0, 1], (x - mean) / std.

    Args:
        image_size: (height, width) the backbone is fed, pixels.
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel, of pixels scaled to [0, 1]; positive.
        interpolation: one of INTERPOLATIONS.
        crop_pct: part of the resized image that the centre crop keeps, in (0, 1].
        crop_mode: "squash" resizes to exactly (h, w) / crop_pct whatever the aspect; "center"
            resizes the shorter side and crops (what timm calls the same).

    Raises:
        VituneError: a value outside its range.
    """

    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "squash"

    def __post_init__(self) -> None:
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise VituneError(
                f"image_size: got {self.image_size!r}, expected (height, width) of at least 1."
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise VituneError(
                f"mean, std: got {self.mean!r}, {self.std!r}, expected three values each, std > 0."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise VituneError(
                f"interpolation: got {self.interpolation!r}, expected one of {INTERPOLATIONS}."
            )
        if not 0 < self.crop_pct <= 1:
            raise VituneError(f"crop_pct: got {self.crop_pct!r}, expected a number in (0, 1].")
        if self.crop_mode not in ("squash", "center"):
            raise VituneError(f"crop_mode: got {self.crop_mode!r}, expected 'squash' or 'center'.")

    @property
    def resize_size(self) -> tuple[int, int]:
        """(height, width) before the centre crop, pixels; rounded down, as timm does."""
        height, width = self.image_size
        return math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The record from `to_dict`'s values.

        Raises:
            VituneError: a key is missing or unknown, or a value is outside its range.
        """
        known = set(cls.__dataclass_fields__)
        odd = sorted(set(values) ^ known)
        if odd:
            raise VituneError(f"preprocessing: got {odd!r} missing or unknown, expected {known}.")
        tuples = {key: tuple(values[key]) for key in ("image_size", "mean", "std")}
        return cls(**{**values, **tuples})
