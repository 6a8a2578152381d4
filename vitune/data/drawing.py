"""Anti-aliased shapes on a small float canvas, by signed distance; numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitune.data.records import Pixels

Plane = npt.NDArray[np.floating]
Colour = npt.NDArray[np.floating]

_CONTRAST = 0.45


class Canvas:
    """A picture in [0, 1] whose corners are (0, 0) top left and (1, 1) bottom right.

    Args:
        height: pixels.
        width: pixels.
        rng: decides the background, the colours asked for and the noise at the end.

    Shapes:
        image: (height, width, 3) float32; x, y: (height, width), pixel centres.
    """

    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        ys = (np.arange(height, dtype=np.float32) + 0.5) / height
        xs = (np.arange(width, dtype=np.float32) + 0.5) / width
        self.y, self.x = (np.ascontiguousarray(g) for g in np.meshgrid(ys, xs, indexing="ij"))
        self.rng = rng
        self.sharpness = float(min(height, width))
        self.base = rng.uniform(0.1, 0.9, 3).astype(np.float32)
        self.image = np.broadcast_to(self.base, (height, width, 3)).copy()

    def shade_background(self) -> None:
        """Lay a slope and a slow wave of random direction and strength over the background."""
        slope = self.rng.uniform(-0.12, 0.12, 2)
        tilt = slope[0] * (self.x - 0.5) + slope[1] * (self.y - 0.5)
        waves = self.rng.uniform(2, 14, 2)
        phase, strength = self.rng.uniform(0, 6.28), self.rng.uniform(0, 0.08)
        ripple = strength * np.sin(waves[0] * self.x + waves[1] * self.y + phase)
        self.image += (tilt + ripple)[..., None].astype(np.float32)

    def colour(self) -> Colour:
        """A random colour that stands out from the background."""
        while True:
            candidate = self.rng.uniform(0, 1, 3).astype(np.float32)
            if np.linalg.norm(candidate - self.base) >= _CONTRAST:
                return candidate

    def paint(self, distance: Plane, colour: Colour | Plane) -> None:
        """Fill where the signed distance (canvas units, negative inside) says so."""
        cover = np.clip(0.5 - distance * self.sharpness, 0, 1)[..., None]
        self.image += cover * (colour - self.image)

    def finished(self) -> Pixels:
        """The picture with sensor noise and an exposure of its own, as uint8."""
        noise_level, exposure = self.rng.uniform((0.01, 0.85), (0.05, 1.1))
        exposed = (self.image + self.rng.normal(0, noise_level, self.image.shape)) * exposure
        return np.round(np.clip(exposed, 0, 1) * 255).astype(np.uint8)


def disc(canvas: Canvas, x: float, y: float, radius: float) -> Plane:
    """Signed distance to a disc, |p - (x, y)| - radius."""
    return np.hypot(canvas.x - x, canvas.y - y) - radius


def polygon(
    canvas: Canvas,
    x: float,
    y: float,
    corners: Sequence[tuple[float, float]],
    scale: float,
    angle: float,
) -> Plane:
    """Signed distance (exact inside, a bound outside) to a convex polygon: its farthest edge line.

    Args:
        canvas: gives the grid.
        x: of the polygon's origin, canvas units.
        y: of the polygon's origin, canvas units.
        corners: in the polygon's own units, anticlockwise with the y axis upwards.
        scale: canvas units in one of the polygon's.
        angle: radians, anticlockwise as seen.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    right, up = canvas.x - x, y - canvas.y
    own_x, own_y = right * cos + up * sin, up * cos - right * sin
    distance = np.full_like(canvas.x, -np.inf)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        length = np.hypot(bx - ax, by - ay)
        normal_x, normal_y = (by - ay) / length, (ax - bx) / length
        edge = (own_x - scale * ax) * normal_x + (own_y - scale * ay) * normal_y
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
    colour: Colour,
    light: npt.NDArray[np.float64],
) -> None:
    """Paint a sphere lit from `light` (x right, y down, z towards the eye): ambient + Lambert."""
    x, y = (canvas.x - centre[0]) / radius, (canvas.y - centre[1]) / radius
    z = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
    lit = 0.35 + 0.65 * np.clip(x * light[0] + y * light[1] + z * light[2], 0, 1)
    canvas.paint(disc(canvas, *centre, radius), lit[..., None].astype(np.float32) * colour)
