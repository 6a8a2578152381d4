"""How a published recipe prepares its images, as declared in the preset, and matching settings."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from vitune.bench.study.plan import Frozen
from vitune.errors import VituneError

SIZE = 224
"""The input size for which a preset's pixel numbers are given; other sizes scale them."""

Filter = Literal["bicubic", "bilinear"]
Resize = Literal["squash", "shorter"]

AUGMENTATIONS = {
    ("none", "squash", False): "none",
    ("none", "squash", True): "flip",
    ("none", "shorter", False): "none",
    ("none", "shorter", True): "flip",
    ("window", "squash", True): "fgvc",
    ("window", "shorter", True): "window",
    ("resized", None, True): "resized_crop",
}
"""The `augment` setting by crop, resize and flip of training images."""


class TestImages(Frozen):
    """Resize, then crop the centre at the input size.

    Args:
        resize: "squash" to `to` x `to` whatever the aspect, or the "shorter" side to `to`.
        to: pixels.
        filter: of the resize, with antialiasing as in Pillow.
    """

    resize: Resize
    to: int = Field(ge=SIZE)
    filter: Filter

    def __str__(self) -> str:
        centre = "" if (self.resize, self.to) == ("squash", SIZE) else f", centre {_square(SIZE)}"
        return f"{_resized(self.resize, self.to)} ({self.filter}){centre}"


class TrainImages(Frozen):
    """Resize and crop, then flip.

    Args:
        resize, to, filter: as in TestImages; none of them for crop "resized", which draws its
            filter from bilinear and bicubic.
        crop: "none" takes the centre; "window" a random window of the input size; "resized" a
            random box of 8 to 100 % of the area and aspect 3/4 to 4/3, resized to the input size.
        flip: horizontally with probability 1/2: always, never, or on the tasks named.
        erase: share of images in which a random box becomes noise.
    """

    resize: Resize | None = None
    to: int | None = Field(None, ge=SIZE)
    filter: Filter | None = None
    crop: Literal["none", "window", "resized"] = "none"
    flip: bool | tuple[str, ...] = False
    erase: float = Field(0.0, ge=0, le=1)

    def __str__(self) -> str:
        if self.crop == "resized":
            parts = [f"random box (8 to 100 % of the area) resized to {_square(SIZE)}"]
            parts.append("bilinear or bicubic by chance")
        else:
            assert self.resize is not None and self.to is not None
            parts = [f"{_resized(self.resize, self.to)} ({self.filter})"]
            if self.crop == "window":
                parts.append(f"random {_square(SIZE)} window")
            elif (self.resize, self.to) != ("squash", SIZE):
                parts.append(f"centre {_square(SIZE)}")
        if self.flip:
            tasks = self.flip if isinstance(self.flip, tuple) else ()
            parts.append(f"flip on {', '.join(tasks)}" if tasks else "flip")
        if self.erase:
            parts.append(f"a noise box in {100 * self.erase:g} % of images")
        return ", ".join(parts)


class Images(Frozen):
    """How files become inputs under one protocol.

    Args:
        normalise: mean and std: "checkpoint" as its card says, "half" 0.5 each, or "imagenet".
        test: images that are scored, validation included.
        train: images that are trained on.
    """

    normalise: Literal["checkpoint", "half", "imagenet"]
    test: TestImages
    train: TrainImages

    @model_validator(mode="after")
    def _possible(self) -> Self:
        train, test = self.train, self.test
        if train.crop == "resized":
            same = train.resize is train.to is train.filter is None
        else:
            same = (train.resize, train.to, train.filter) == (test.resize, test.to, test.filter)
        if not same:
            raise VituneError(
                f"images: got training images {train.model_dump()!r} with test images "
                f"{test.model_dump()!r}, expected the same resize, or none with crop 'resized'."
            )
        if train.crop == "window" and train.to != 256:
            raise VituneError(f"images: got windows of {train.to} pixels, expected of 256.")
        if self._key(bool(train.flip)) not in AUGMENTATIONS:
            raise VituneError(
                f"images: got crop {train.crop!r} with flip {train.flip!r}, expected one of "
                f"{sorted(set(AUGMENTATIONS.values()))}."
            )
        return self

    def _key(self, flipped: bool) -> tuple[str, str | None, bool]:
        return self.train.crop, self.train.resize, flipped

    def settings(self) -> dict[str, Any]:
        """Training settings, for every task, that prepare images this way."""
        flipped = self.train.flip is True
        found: dict[str, Any] = {
            "crop_mode": "squash" if self.test.resize == "squash" else "center",
            "crop_pct": SIZE / self.test.to,
            "interpolation": self.test.filter,
            "augment": AUGMENTATIONS[self._key(flipped)],
        }
        if self.normalise != "checkpoint":
            found["pixel_stats"] = self.normalise
        if self.train.erase:
            found["random_erasing"] = self.train.erase
        return found

    def task_settings(self) -> dict[str, dict[str, Any]]:
        """Further ones by task, if only some tasks are flipped."""
        named = self.train.flip if isinstance(self.train.flip, tuple) else ()
        return {task: {"augment": AUGMENTATIONS[self._key(True)]} for task in named}


def _resized(resize: Resize, to: int) -> str:
    return f"squash to {_square(to)}" if resize == "squash" else f"shorter side to {to}"


def _square(side: int) -> str:
    return f"{side} x {side}"
