"""The images for checking an export, and those for calibrating 8-bit activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitune.data import Split
from vitune.errors import VituneError
from vitune.inference import LoadedRun, held_out, home_of, own_splits
from vitune.runs import RunFolder

NUM_CHECKED = 512
NUM_CALIBRATION = 128

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class ExportImages:
    """Images in the network's input format, with labels.

    Args:
        data: where they come from.
        checked: validation images, at most NUM_CHECKED, spread evenly over the split; none that
            trained the network, if there are others.
        calibration: training images, at most NUM_CALIBRATION.
        were_trained_on: whether `checked` trained the network, as with --refit: there are no
            others.
    """

    data: str
    checked: Split
    calibration: Split
    were_trained_on: bool = False


def export_images(
    run: LoadedRun, data: str | Path | None = None, *, on_read: Progress | None = None
) -> ExportImages:
    """The run's own validation and training images, or those of `data` divided in the same way.

    Raises:
        VituneError: no images are given, as only a run folder records its own; or none of them can
            be held out for validation.
        DataError: the images cannot be read, or have other classes.
    """
    home = home_of(RunFolder(run.path))
    config: dict[str, Any] = {} if home is None else home.read_config()
    source = data or config.get("data")
    if not source:
        raise VituneError(
            f"--data: got nothing for {str(run.path)!r}, expected images to check the file on: "
            "only a run folder records its own."
        )
    splits = own_splits(run, str(source), config, on_read)
    assert splits.train is not None
    if splits.val is None:
        raise VituneError(
            f"--data: got {str(source)!r}, in which every class has one image, expected validation "
            "images to check the file on. Give more images with --data."
        )
    refitted = bool(config.get("refit")) and data is None
    val, were_trained_on = held_out(run.path, splits.val, otherwise=refitted)
    return ExportImages(
        Path(str(source)).name,
        _spread(val, NUM_CHECKED),
        _spread(splits.train, NUM_CALIBRATION),
        were_trained_on=were_trained_on,
    )


def _spread(split: Split, most: int) -> Split:
    """At most this many images, evenly over the split's order, which goes class by class."""
    chosen = np.linspace(0, len(split) - 1, min(most, len(split))).round().astype(int)
    return split.subset(chosen)
