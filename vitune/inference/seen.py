"""Which labelled images may be scored: those that a run was not trained on; and their labels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitune.data import Split, UsedImages
from vitune.errors import DataError
from vitune.inference.own_images import home_of
from vitune.report import counted
from vitune.runs import RunFolder

Mask = npt.NDArray[np.bool_]


@dataclass
class Chooser:
    """Chooses among the images of a split by their role in a run.

    Images used neither for training nor for validation are scored; if there are none, validation
    images. Training images are scored only on request.

    Args:
        used: the role of each image; None if unknown (for a merged model).
        including_training: score everything.
        data: the name of the images in error messages.
    """

    used: UsedImages | None
    including_training: bool
    data: str
    seen: dict[str, int] | None = None
    left_out: dict[str, int] | None = None

    def __call__(self, digests: Sequence[bytes | None]) -> Mask:
        """Which of the images to score.

        Raises:
            DataError: all of them were used for training.
        """
        everything = np.ones(len(digests), bool)
        if self.used is None:
            return everything
        did = self.used.took_part(digests)
        kept = everything
        if not self.including_training:
            kept = ~did["train"] & ~did["val"]
            kept = kept if kept.any() else did["val"]
        if not kept.any():
            raise DataError(
                f"images of {self.data}: got {len(digests)} that were all used to train this "
                "run, expected others. Give --data with images that were held out, or score "
                "these with "
                "--including-training, which marks the result."
            )
        self.seen = _counts(did, kept)
        self.left_out = _counts(did, ~kept)
        return kept

    @property
    def marks(self) -> dict[str, Any]:
        """What the result says about the choice; counts are None if unknown."""
        return {
            "including_training": self.including_training,
            "seen": self.seen,
            "left_out": self.left_out,
        }

    def name(self, split: str) -> str:
        """The name of the scored part of `split`."""
        if self.seen is None or self.left_out is None:
            return split
        if self.seen["trained"]:
            return f"{split}-including-training"
        if self.seen["watched"]:
            return "val"
        return f"{split}-unseen" if any(self.left_out.values()) else split


def used_images(path: str | Path) -> UsedImages | None:
    """The images of the run at `path`, or of the run whose `adapter/` it is; None if unknown.

    Raises:
        DataError: the list is damaged.
    """
    home = home_of(RunFolder(Path(path)))
    if home is None or not home.images.is_file():
        return None
    return UsedImages.read(home.images)


def held_out(path: str | Path, split: Split, *, otherwise: bool) -> tuple[Split, bool]:
    """The images of a validation split that did not train the run at `path`; all if all did.

    A hold-out that is drawn again is another one if a file has been added or removed since. A
    warning names images that have another class now.

    Args:
        otherwise: whether they trained it if the run wrote down no images.

    Returns:
        The images, and whether they trained the run.

    Raises:
        DataError: the list of the run's images is damaged.
    """
    used = used_images(path)
    if used is None:
        return split, otherwise
    warn_of_other_labels(used, split)
    kept = ~used.took_part([row.tobytes() for row in split.content_digests])["train"]
    if not kept.any():
        return split, True
    return (split if kept.all() else split.subset(np.flatnonzero(kept))), False


def warn_of_other_labels(used: UsedImages | None, split: Split) -> None:
    """Warn of images of the run that have another class now than in its training.

    Args:
        used: the images of the run; None if unknown.
    """
    found = {} if used is None else used.labelled_otherwise(split)
    if found:
        first = min(found)
        was = " and ".join(map(repr, found[first]))
        warnings.warn(
            f"{counted(len(found), 'image')} of the run had another class in training; the first, "
            f"{split.paths[first]!r}, was in {was}. The labels of today count.",
            stacklevel=3,
        )


def _counts(did: Mapping[str, Mask], among: Mask) -> dict[str, int]:
    return {
        "trained": int((did["train"] & among).sum()),
        "watched": int((did["val"] & among).sum()),
    }
