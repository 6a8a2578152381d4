"""The images that a run was trained and validated on, read again as it divided them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitune.data import Splits, load_splits, open_source
from vitune.inference.load import LoadedRun
from vitune.runs import RunFolder

Progress = Callable[[int, int], None]


def own_splits(
    run: LoadedRun, data: str, config: dict[str, Any], on_read: Progress | None = None
) -> Splits:
    """Training and validation images of `data`, in the run's input format and class order.

    Args:
        config: the run's; empty for an adapter without one. Its seed, share held out and groups
            are used.

    Raises:
        DataError: the images cannot be read, or have other classes.
    """
    return load_splits(
        open_source(data).relabelled(run.classes),
        run.card.preprocessing,
        seed=int(config.get("seed", 0)),
        val_fraction=config.get("val_fraction") or 0.2,
        include=("train", "val"),
        lone_classes=True,
        skip_bad_images=bool(config.get("skip_bad_images", False)),
        groups=config.get("groups"),
        on_progress=on_read,
    )


def home_of(folder: RunFolder) -> RunFolder | None:
    """The run that `folder` is, or that an adapter in `folder` is part of; None if there is none.

    An adapter is part of the run in whose folder it lies, as RUN/adapter and RUN/probe do.
    """
    for place in (folder, RunFolder(folder.path.absolute().parent)):
        if place.config.is_file():
            return place
    return None
