"""Runs trained for an attack: references on random images, and other methods on the same ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitune.data import Split, Splits, UsedImages
from vitune.errors import OutputError
from vitune.files import check_new_folder, write_atomic
from vitune.methods import get_method
from vitune.privacy.membership import Mask
from vitune.result_files import as_record, read_json
from vitune.runs import RunFolder
from vitune.training import STEPPING, TrainConfig, fit

RECORD = "audit.json"
OF_ITS_OWN = (
    "method", "method_args", "lr", "head_lr", "weight_decay", "optimiser", "momentum", "start",
    "choose_best", "objective", "objective_args", "speed", "tokens", "precision", "dp_epsilon",
    "dp_delta", "dp_clip",
)  # fmt: skip
"""Settings that a method trained beside a run does not take from it."""


def drawn(labels: npt.NDArray[np.int64], size: int, num_runs: int, seed: int) -> Mask:
    """Which images each reference run trains on: pairs of runs share none.

    Classes have their share in every run, as nearly as whole images allow. Each image is left out
    by one run of every pair at least. More runs keep the first ones as they were.

    Shapes: labels (b,); returns (r, b), each with `size` <= b / 2 true entries.
    """
    chosen = np.zeros((num_runs, len(labels)), bool)
    for index in range(num_runs):
        rng = np.random.default_rng([seed, index // 2])
        order = _mixed(labels, rng)
        start = size * (index % 2)
        chosen[index, order[start : start + size]] = True
    return chosen


def _mixed(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A random order in which any stretch holds the classes in proportion."""
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    place = np.arange(len(labels)) - np.repeat(starts, counts)
    at = (place + np.repeat(rng.random(len(counts)), counts)) / np.repeat(counts, counts)
    found: npt.NDArray[np.int64] = by_class[np.argsort(at, kind="stable")]
    return found


def settings_beside(own: TrainConfig, method: str) -> TrainConfig:
    """What another method trains with beside a run: its backbone, images, epochs and batches.

    Rates and start are those that vitune gives the method; there is no privacy, and the solved
    probe does not take its place.
    """
    left = set(OF_ITS_OWN) | (set(STEPPING) if get_method(method).solved else set())
    values = {name: getattr(own, name) for name in own.model_fields_set - left}
    if not get_method(method).solved:
        values["choose_best"] = False
    return TrainConfig.make({**values, "method": method})


@dataclass(frozen=True)
class ReferenceRuns:
    """Where an audit keeps the runs that it trains, so that a stopped one goes on.

    Args:
        pool: decoded images that runs may train on.
        enlarged: the same at the size that the audited run's augmentation cuts windows from.
        val: validation images of the audited run; None where there are none.
    """

    folder: Path
    pool: Split
    enlarged: Split
    val: Split | None

    def trained(self, name: str, config: TrainConfig, chosen: Mask) -> Path:
        """The run `name`, trained on the chosen images; one that is finished is used as it is.

        Raises:
            OutputError: it was trained on other images.
        """
        run = RunFolder(self.folder / name)
        pool = self.pool if get_method(config.method).solved else self.enlarged
        train = pool.subset(np.flatnonzero(chosen))
        splits = Splits(train, self.val, None, None, train.classes, (), None, 0, (), 0)
        if run.read_summary() is not None:
            used = UsedImages.read(run.images)
            if used.difference(UsedImages.of(train, self.val)) is not None:
                raise OutputError(
                    f"--out: got {str(run.path)!r}, a run on other images, expected one of this "
                    "audit. Choose another --out."
                )
        elif run.config.is_file():
            fit(out=run.path, resume=True, splits=splits)
        else:
            batch = min(config.batch_size, len(train))
            fit(config.model_copy(update={"batch_size": batch}), out=run.path, splits=splits)
        return run.path


def claim(folder: Path, record: Mapping[str, Any]) -> None:
    """Make `folder` this audit's, or see that it is already.

    Raises:
        OutputError: it is a file, holds something else, or the runs of another audit.
    """
    file = folder / RECORD
    if not file.is_file():
        check_new_folder(folder)
        write_atomic(file, json.dumps(record, indent=1))
        return
    known = as_record(read_json(file, str(file)), str(file)).values
    changed = [name.replace("_", " ") for name in record if known.get(name) != record[name]]
    if changed:
        raise OutputError(
            f"--out: got {str(folder)!r}, which holds an audit with another {changed[0]}, expected "
            "a new folder or one of this audit. Choose another name."
        )
