"""Anti-aliased shapes on a small float canvas, by signed distance; numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitune.data.records import Pixels

Plane = npt.NDArray[np.floating]
Tone = float | Plane
"""A grey from 0 (black) to 1 (white); a plane has one for each pixel."""


class Area:
    """A rectangle of a picture to paint on: pixel centres in canvas units, and the pixels.

    Shapes:
        x, y: (height, width) float32.
        image: (height, width, 3) float32, a view of the whole picture.
    """

    def __init__(self, x: Plane, y: Plane, image: Plane, sharpness: float) -> None:
        self.x, self.y, self.image, self.sharpness = x, y, image, sharpness

    def paint(self, distance: Plane, tone: Tone) -> None:
        """Fill where the signed distance (canvas units) is negative."""
        cover = np.clip(0.5 - distance * self.sharpness, 0, 1)[..., None]
        self.image += cover * (np.asarray(tone, np.float32)[..., None] - self.image)


class Canvas(Area):
    """A picture in [0, 1] whose corners are (0, 0) top left and (1, 1) bottom right.

    Light shapes on dark ground, as in dSprites and small NORB. With shapes and background of any
        colour
    800 images are too few: a network memorises them and is near chance on others.

    Args:
        height: pixels.
        width: pixels.
        rng: determines the background, the requested tones and the final noise.
    """

    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        ys = (np.arange(height, dtype=np.float32) + 0.5) / height
        xs = (np.arange(width, dtype=np.float32) + 0.5) / width
        y, x = np.meshgrid(ys, xs, indexing="ij")
        self.rng = rng
        self.base = float(rng.uniform(0.05, 0.35))
        image = np.full((height, width, 3), self.base, np.float32)
        super().__init__(x, y, image, float(min(height, width)))

    def around(self, x: float, y: float, reach: float) -> Area:
        """The part within `reach` of (x, y), plus one pixel: what a small shape can touch."""
        height, width = self.x.shape
        top, bottom = _pixels(y - reach, y + reach, height)
        left, right = _pixels(x - reach, x + reach, width)
        part = (slice(top, bottom), slice(left, right))
        return Area(self.x[part], self.y[part], self.image[part], self.sharpness)

    def shade_background(self) -> None:
        """Lay a slope of random direction and strength over the background."""
        slope = self.rng.uniform(-0.12, 0.12, 2).tolist()
        self.image += (slope[0] * (self.x - 0.5) + slope[1] * (self.y - 0.5))[..., None]

    def tone(self) -> float:
        """A random grey that stands out from the background."""
        return float(self.rng.uniform(0.6, 1))

    def finished(self) -> Pixels:
        """The picture with sensor noise and a random exposure, as uint8."""
        noise_level, exposure = self.rng.uniform((0.01, 0.85), (0.05, 1.1)).tolist()
        noise = self.rng.standard_normal(self.image.shape, dtype=np.float32)
        exposed = (self.image + noise_level * noise) * exposure
        return np.round(np.clip(exposed, 0, 1) * 255).astype(np.uint8)


def disc(area: Area, x: float, y: float, radius: float) -> Plane:
    """Signed distance to a disc, |p - (x, y)| - radius."""
    return np.hypot(area.x - float(x), area.y - float(y)) - float(radius)


def polygon(
    area: Area,
    x: float,
    y: float,
    corners: Sequence[tuple[float, float]],
    scale: float,
    angle: float,
) -> Plane:
    """Signed distance (exact inside, a bound outside) to a convex polygon: its farthest edge line.

    Args:
        area: gives the grid.
        x: of the polygon's origin, canvas units.
        y: of the polygon's origin, canvas units.
        corners: in the polygon's own units, anticlockwise with the y axis upwards.
        scale: canvas units in one of the polygon's.
        angle: radians, anticlockwise as seen.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    right, up = area.x - float(x), float(y) - area.y
    own_x, own_y = right * cos + up * sin, up * cos - right * sin
    distance = np.full_like(area.x, -np.inf)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        length = math.hypot(bx - ax, by - ay)
        normal_x, normal_y = (by - ay) / length, (ax - bx) / length
        edge = own_x * normal_x + own_y * normal_y
        edge -= float(scale) * (ax * normal_x + ay * normal_y)
        np.maximum(distance, edge, out=distance)
    return distance


def regular(num_corners: int) -> list[tuple[float, float]]:
    """Corners of a regular polygon of radius 1."""
    turns = 2 * np.pi * np.arange(num_corners) / num_corners
    return [(float(np.cos(turn)), float(np.sin(turn))) for turn in turns]


def shaded_sphere(
    canvas: Canvas,
    centre: tuple[float, float],
    radius: float,
    tone: float,
    light: Sequence[float],
) -> None:
    """Paint a sphere lit from `light` (x right, y down, z towards the eye): ambient + Lambert."""
    area = canvas.around(*centre, radius)
    x, y = (area.x - float(centre[0])) / float(radius), (area.y - float(centre[1])) / float(radius)
    z = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
    lit = 0.35 + 0.65 * np.clip(x * light[0] + y * light[1] + z * light[2], 0, 1)
    area.paint(disc(area, *centre, radius), lit * tone)


def _pixels(low: float, high: float, length: int) -> tuple[int, int]:
    """First and one past the last pixel between two positions, with one to spare at each end."""
    first = max(0, math.floor(low * length) - 1)
    return first, max(first, min(length, math.ceil(high * length) + 1))
