"""Five seeded tasks drawn by code, in the spirit of VTAB's structured group."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from vitune.data.records import ImageList, Pixels, Record
from vitune.data.shapes import Canvas, disc, polygon, regular, shaded_sphere
from vitune.errors import DataError

_HORIZON_STEP = 1.35
_HEADINGS: tuple[list[tuple[float, float]], ...] = (
    [(1.2, 0.0), (-0.8, 0.55), (-0.8, -0.55)],
    [(1.2, 0.0), (0.4, 0.5), (-0.8, 0.5), (-0.8, -0.5), (0.4, -0.5)],
    [(1.1, 0.2), (1.1, -0.2), (-0.9, -0.7), (-0.9, 0.7)][::-1],
)


def draw_count(canvas: Canvas, label: int) -> None:
    """label + 1 shapes that do not touch, each with its own kind, size, angle and tone."""
    rng = canvas.rng
    size = rng.uniform(0.05, 0.09)
    placed: list[tuple[float, float, float]] = []
    while len(placed) < label + 1:
        radius = size * rng.uniform(0.75, 1.25)
        x, y = rng.uniform(radius, 1 - radius, 2)
        if any(np.hypot(x - px, y - py) < radius + pr + 0.035 for px, py, pr in placed):
            size = max(0.045, 0.98 * size)
            continue
        placed.append((x, y, radius))
        _shape(canvas, x, y, radius)


def draw_distance(canvas: Canvas, label: int) -> None:
    """Balls on a ground plane; the label is the distance bin of the nearest, by perspective."""
    rng = canvas.rng
    horizon = rng.uniform(0.28, 0.38)
    canvas.paint(float(horizon) - canvas.y, rng.uniform(0.05, 0.35))
    nearest_at = _HORIZON_STEP ** (label + rng.uniform(0.05, 0.95))
    farther = nearest_at * rng.uniform(1.25, 3.0, rng.integers(0, 3))
    for distance in sorted([nearest_at, *farther], reverse=True):
        radius = 0.17 * rng.uniform(0.8, 1.25) / distance
        foot = horizon + (0.95 - horizon) / distance
        _shape(canvas, rng.uniform(0.15, 0.85), foot - radius, radius)


def draw_location(canvas: Canvas, label: int) -> None:
    """One shape; the label is the bin of its horizontal centre, left to right."""
    rng = canvas.rng
    x = 0.12 + 0.76 * (label + rng.uniform(0.05, 0.95)) / 8
    _shape(canvas, x, rng.uniform(0.15, 0.85), rng.uniform(0.09, 0.16))


def draw_orientation(canvas: Canvas, label: int) -> None:
    """A body with a nose; the label is the bin of its heading, anticlockwise from the right."""
    rng = canvas.rng
    heading = 2 * np.pi * (label + rng.uniform(-0.4, 0.4)) / 8
    x, y = rng.uniform(0.42, 0.58, 2)
    corners = _HEADINGS[rng.integers(len(_HEADINGS))]
    scale = rng.uniform(0.2, 0.3)
    area = canvas.around(x, y, 1.5 * scale)
    area.paint(polygon(area, x, y, corners, scale, heading), canvas.tone())
    nose = (x + scale * np.cos(heading), y - scale * np.sin(heading))
    area.paint(disc(area, *nose, 0.3 * scale), canvas.tone())


def draw_azimuth(canvas: Canvas, label: int) -> None:
    """One of five lit toys made of balls; the label is the bin of the viewing direction."""
    rng = canvas.rng
    turn = 2 * np.pi * (label + rng.uniform(-0.4, 0.4)) / 9
    lift = np.radians(rng.uniform(20, 55))
    toy = _toy(int(rng.integers(5)))
    forward = toy[:, 0] * np.cos(turn) - toy[:, 1] * np.sin(turn)
    side = toy[:, 0] * np.sin(turn) + toy[:, 1] * np.cos(turn)
    height = toy[:, 2] * np.cos(lift) - forward * np.sin(lift)
    depth = forward * np.cos(lift) + toy[:, 2] * np.sin(lift)
    scale, centre = rng.uniform(0.75, 1.05), rng.uniform(0.44, 0.56, 2)
    light = rng.normal(0, 1, 3) * (1, 1, 0.3) + (0, -1, 1.5)
    light /= np.linalg.norm(light)
    tone = canvas.tone()
    for ball in np.argsort(depth):
        place = (centre[0] + scale * side[ball], centre[1] - scale * height[ball])
        shaded_sphere(canvas, place, scale * toy[ball, 3], tone, light.tolist())


def _shape(canvas: Canvas, x: float, y: float, radius: float) -> None:
    """A disc, square or triangle of random angle and tone."""
    kind, angle = canvas.rng.integers(3), canvas.rng.uniform(0, 2 * np.pi)
    area = canvas.around(x, y, 1.15 * radius)
    if kind == 0:
        distance = disc(area, x, y, radius)
    else:
        distance = polygon(area, x, y, regular(5 - int(kind)), 1.15 * radius, angle)
    area.paint(distance, canvas.tone())


def _toy(which: int) -> np.ndarray:
    """(balls, 4) of x forward, y left, z up, radius: body, neck, head, tail, and one side pack."""
    parts = np.array(
        [
            (0.00, 0.00, 0.00, 0.17),
            (-0.14, 0.00, 0.00, 0.13),
            (0.16, 0.00, 0.05, 0.12),
            (0.27, 0.00, 0.13, 0.09),
            (0.35, 0.00, 0.12, 0.04),
            (-0.29, 0.00, 0.08, 0.05),
            (0.00, 0.17, 0.05, 0.07),
        ]
    )
    change = np.random.default_rng([which, 5]).uniform(0.75, 1.25, parts.shape)
    return parts * change


@dataclass(frozen=True)
class Task:
    """A drawn task: its class names and the function that draws one of them."""

    classes: tuple[str, ...]
    draw: Callable[[Canvas, int], None]


TASKS: dict[str, Task] = {
    "count": Task(tuple(f"{n} shapes" for n in range(1, 9)), draw_count),
    "distance": Task(tuple(f"distance {n}" for n in range(6)), draw_distance),
    "location": Task(tuple(f"x {n}/8" for n in range(8)), draw_location),
    "orientation": Task(tuple(f"{45 * n} degrees" for n in range(8)), draw_orientation),
    "azimuth": Task(tuple(f"{40 * n} degrees" for n in range(9)), draw_azimuth),
}


@dataclass(frozen=True)
class Scene:
    """One picture of a task (a Drawing): a pure function of these fields and the requested size."""

    task: str
    split: str
    index: int
    label: int
    seed: int

    @property
    def name(self) -> str:
        """Task, split and number."""
        return f"demo:{self.task}/{self.split}/{self.index:06d}"

    @property
    def content(self) -> bytes:
        """The fields that determine the pixels."""
        return f"{self.task}/{self.split}/{self.index}/{self.label}/{self.seed}".encode()

    def pixels(self, height: int, width: int) -> Pixels:
        """The scene drawn at (height, width, 3); the same scene at every size."""
        canvas = Canvas(height, width, _rng(self.seed, self.task, self.split, self.index))
        canvas.shade_background()
        TASKS[self.task].draw(canvas, self.label)
        return canvas.finished()


def open_procedural(spec: str, name: str, options: Mapping[str, int]) -> ImageList:
    """A drawn task with `train`, `val` and `test` images (by default 800, 200, 2000).

    Classes are balanced to within one image; pictures are a pure function of the task, the split,
    their number and `options["seed"]`. A split of 0 images is left out.

    Raises:
        DataError: a training split smaller than the number of classes.
    """
    classes = TASKS[name].classes
    if options["train"] < len(classes):
        raise DataError(
            f"train of {spec}: got {options['train']}, expected at least {len(classes)} images, "
            "one per class."
        )
    seed = options["seed"]
    splits = {}
    for split in ("train", "val", "test"):
        labels = np.arange(options[split]) % len(classes)
        _rng(seed, name, split, -1).shuffle(labels)
        scenes = (Scene(name, split, i, int(label), seed) for i, label in enumerate(labels))
        splits[split] = tuple(Record(scene, scene.label) for scene in scenes)
    return ImageList(spec, {name: found for name, found in splits.items() if found}, classes)


def _rng(seed: int, task: str, split: str, index: int) -> np.random.Generator:
    place = zlib.crc32(f"{task}/{split}".encode())
    return np.random.default_rng([seed, place, index + 1])
