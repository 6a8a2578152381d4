"""k training images per class, drawn from any source of files, for accuracy against k."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitune.bench.study.plan import Task
from vitune.bench.suites.split_lists import Line, write_table
from vitune.data import ImageList, Record, open_source
from vitune.errors import VituneError

MAX_VAL_SHOTS = 4
"""Validation images per class taken from a source's own validation split; fewer if k is smaller."""

TRAINING = ("train", "trainval", "all")


def with_shots(
    tasks: Sequence[Task], shots: Sequence[int], lists: Path, *, seed: int = 0
) -> tuple[Task, ...]:
    """Every task at every number of shots, tested on its whole test split.

    The draws are nested: the images for a smaller number of shots are among those for a larger. A
        source's own
    validation split gives min(k, MAX_VAL_SHOTS) images per class to choose settings on, and the
    final runs are trained on the k images alone.

    Args:
        shots: training images per class, each 1 or more.
        lists: folder into which the drawn tables are written.
        seed: of the draws.

    Raises:
        VituneError: fewer than 1 shot, or a source without files, without a test split, or with
            too few images in a class.
    """
    _require_shots(shots)
    several = len(tasks) > 1
    return tuple(
        task.model_copy(
            update={
                "name": f"{task.name}-{number}shot",
                "data": str(_shot_table(task, number, seed, lists)),
                "group": f"{number}-shot" if several and len(shots) > 1 else None,
                "shots": number,
                "refit": False,
            }
        )
        for number in shots
        for task in tasks
    )


def _require_shots(shots: Sequence[int]) -> None:
    for number in shots:
        if number < 1 or shots.count(number) > 1:
            raise VituneError(f"--shots: got {number!r}, expected different numbers, 1 or more.")


def _shot_table(task: Task, shots: int, seed: int, lists: Path) -> Path:
    listed = open_source(task.data)
    training = next((name for name in TRAINING if name in listed.splits), None)
    if "test" not in listed.splits or training is None:
        raise VituneError(
            f"--shots: got {task.data!r} without a test split, expected one: the images that are "
            "not drawn are no substitute."
        )
    chosen = {
        "train": _drawn(listed, training, shots, seed, exactly=True),
        "val": _drawn(listed, "val", min(shots, MAX_VAL_SHOTS), seed, exactly=False),
        "test": list(listed.splits["test"]),
    }
    lines: list[Line] = [
        (_path(record, task), listed.classes[record.label], split)
        for split, records in chosen.items()
        for record in records
    ]
    return write_table(lines, lists / f"{task.name}-{shots}-{seed}.csv")


def _drawn(listed: ImageList, split: str, number: int, seed: int, *, exactly: bool) -> list[Record]:
    """`number` images of every class: the first ones in an order determined by `seed`."""
    records = listed.splits.get(split, ())
    found: list[Record] = []
    for label in sorted({record.label for record in records}):
        own = [record for record in records if record.label == label]
        if exactly and len(own) < number:
            raise VituneError(
                f"--shots: got {number}, expected at most the {len(own)} {split} images of class "
                f"{listed.classes[label]!r} in {listed.spec}."
            )
        order = np.random.default_rng([seed, label]).permutation(len(own))
        found += [own[place] for place in order[:number]]
    return found


def _path(record: Record, task: Task) -> str:
    if not isinstance(record.image, Path):
        raise VituneError(
            f"--shots: got {task.data!r}, whose images are not files, expected a folder or a list "
            "of files. 'demo:NAME?train=N' sets the size of a drawn task."
        )
    return str(record.image.absolute())
