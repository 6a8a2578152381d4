"""The drawn tasks: seeded, balanced, different at every number, the same scene at every size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitune.data import open_source
from vitune.data.procedural import TASKS, Scene
from vitune.data.shapes import Canvas

CLASSES = {"count": 8, "distance": 6, "location": 8, "orientation": 8, "azimuth": 9}


def test_there_are_five_tasks() -> None:
    assert {name: len(task.classes) for name, task in TASKS.items()} == CLASSES


@pytest.mark.parametrize("name", CLASSES)
def test_splits_are_balanced_and_of_the_stated_size(name: str) -> None:
    found = open_source(f"demo:{name}")
    assert {split: len(r) for split, r in found.splits.items()} == {
        "train": 800,
        "val": 200,
        "test": 2000,
    }
    for records in found.splits.values():
        counts = np.bincount([r.label for r in records], minlength=CLASSES[name])
        assert counts.max() - counts.min() <= 1
    assert found == open_source(f"demo:{name}")
    assert found.splits["test"] != open_source(f"demo:{name}?seed=1").splits["test"]
    assert "val" not in open_source(f"demo:{name}?val=0").splits


@pytest.mark.parametrize("name", CLASSES)
def test_pictures_are_seeded_and_all_different(name: str) -> None:
    records = open_source(f"demo:{name}?train=40").splits["train"]
    drawn = [r.image.pixels(32, 32) for r in records if not isinstance(r.image, Path)]
    again = [r.image.pixels(32, 32) for r in records if not isinstance(r.image, Path)]
    assert len(drawn) == 40
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert len({pixels.tobytes() for pixels in drawn}) == 40
    assert len({r.image.content for r in records if not isinstance(r.image, Path)}) == 40
    assert min(pixels.std() for pixels in drawn) > 2


@pytest.mark.parametrize("name", CLASSES)
def test_the_scene_is_the_same_at_every_size(name: str) -> None:
    scene = Scene(name, "train", 7, 3, 0)
    small, large = scene.pixels(32, 32), scene.pixels(224, 224)
    shrunk = np.asarray(Image.fromarray(large).resize((32, 32), Image.Resampling.BOX))
    difference = np.abs(small.astype(float) - shrunk)
    assert np.median(difference) < 12
    assert scene.pixels(24, 40).shape == (24, 40, 3)


def test_location_is_where_the_label_says() -> None:
    for label in (0, 7):
        scene = Scene("location", "train", 1, label, 0).pixels(64, 64).astype(float)
        away = np.abs(scene - np.median(scene, axis=(0, 1))).sum(2)
        centre = np.median((away > 0.6 * away.max()).nonzero()[1]) / 64
        assert centre == pytest.approx(0.12 + 0.76 * (label + 0.5) / 8, abs=0.12)


@pytest.mark.parametrize("label", [0, 1, 3, 4, 6])
def test_orientation_is_where_the_label_says(label: int, monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = Canvas(128, 128, np.random.default_rng(label))
    canvas.image[:] = 0
    tones = iter((0.5, 1.0))
    monkeypatch.setattr(canvas, "tone", lambda: next(tones))
    TASKS["orientation"].draw(canvas, label)
    grey = canvas.image[..., 0]
    body = np.argwhere(abs(grey - 0.5) < 0.1).mean(axis=0)
    nose = np.argwhere(grey > 0.9).mean(axis=0)
    up, right = body[0] - nose[0], nose[1] - body[1]
    turned = (np.degrees(np.arctan2(up, right)) - 45 * label + 180) % 360 - 180
    assert abs(turned) < 22.5


def test_count_draws_that_many_shapes() -> None:
    from scipy.ndimage import label as connected

    for wanted in range(8):
        canvas = Canvas(256, 256, np.random.default_rng(wanted))
        start = canvas.image.copy()
        TASKS["count"].draw(canvas, wanted)
        _, found = connected(np.abs(canvas.image - start).sum(2) > 0.1, np.ones((3, 3)))
        assert found == wanted + 1
