"""The cost of a study, from steps measured on this machine: `vitune bench run --dry-run`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from vitune.bench.study.cell_planner import Planner
from vitune.bench.study.choosing import needs_selection, num_selection_cells
from vitune.bench.study.plan import Study, Task, Variant
from vitune.bench.study.running import image_logits
from vitune.bench.study.workbench import TaskData, Workbench
from vitune.data import Split, Splits, open_source
from vitune.training import Observer
from vitune.training.fitting import fit

WARMUP_STEPS, TIMED_STEPS = 1, 3
SCORED_IMAGES = 64


@dataclass(frozen=True)
class Estimate:
    """The cost of one variant on one task.

    Args:
        num_cells: runs of both stages.
        step_ms: median of measured steps at the study's batch size; None for a method without
            steps.
        hours: of all its runs on this machine, one after the other.
        peak_mib: during the steps.
        num_trainable: parameters.
    """

    label: str
    task: str
    num_cells: int
    step_ms: float | None
    hours: float
    peak_mib: float
    num_trainable: int


class _Stopwatch(Observer):
    """The end time of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def stepped(self, step: int, loss: float, num_images: int) -> None:
        self.ends.append(time.perf_counter())

    @property
    def step_ms(self) -> float | None:
        """Median milliseconds between ends, without the first steps; None without steps."""
        if not self.ends:
            return None
        gaps = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)][WARMUP_STEPS - 1 :]
        return 1000 * median(gaps)


@dataclass(frozen=True)
class _Measured:
    step_ms: float | None
    score_ms: float
    peak_mib: float
    num_trainable: int


def estimate(study: Study, bench: Workbench | None = None) -> list[Estimate]:
    """Runs, hours and memory by variant and task; no test split is opened.

    A few steps of every variant are measured on the first task and used for all, because images of
    all tasks have the same size.

    Raises:
        VituneError: data or backbone that cannot be used.
    """
    planner = Planner(study, bench or Workbench())
    measured = {v.label: _measure(planner, v, study.tasks[0]) for v in study.variants}
    return [
        _estimate(planner, variant, task, measured[variant.label])
        for task in study.tasks
        for variant in study.variants
    ]


def total_hours(estimates: Sequence[Estimate], num_workers: int = 1) -> float:
    """Hours of a whole study if `num_workers` share it evenly."""
    return sum(found.hours for found in estimates) / num_workers


def _measure(planner: Planner, variant: Variant, task: Task) -> _Measured:
    """Train a few steps on a few images and score a few."""
    study = planner.study
    setting = study.grid_of(variant)[0]
    config = study.config(variant, task, setting, seed=0, refit=False)
    splits = _first_splits(planner, variant, task)
    assert splits.train is not None
    batch = min(config.batch_size, len(splits.train))
    steps = (1 + WARMUP_STEPS + TIMED_STEPS) * config.accumulation_steps
    watch = _Stopwatch()
    trained = fit(
        config.model_copy(update={"epochs": 1, "batch_size": batch}),
        splits=_repeated(splits, batch * steps),
        observer=watch,
    )
    shown = splits.val or splits.train
    few = _as_scored(shown, planner.bench.facts(config).preprocessing.image_size)
    started = time.perf_counter()
    image_logits(trained, few)
    per_image = (time.perf_counter() - started) / len(few)
    return _Measured(
        step_ms=watch.step_ms,
        score_ms=1000 * per_image,
        peak_mib=trained.summary.peak_mib or 0.0,
        num_trainable=trained.summary.num_trainable or 0,
    )


def _as_scored(split: Split, size: tuple[int, int]) -> Split:
    """A few images at the network's size; training images for random windows are larger."""
    few = split.subset(range(min(SCORED_IMAGES, len(split))))
    return replace(few, images=few.images[:, : size[0], : size[1]])


def _first_splits(planner: Planner, variant: Variant, task: Task) -> Splits:
    """The images of stage 1, or of the final runs if there is nothing to choose.

    With one image per class there is none to hold out, and no stage 1.
    """
    study = planner.study
    chooses = needs_selection(study, variant) or planner.scored_on(task) == "val"
    return _data(planner, variant, task).divided(refit=not chooses)


def _data(planner: Planner, variant: Variant, task: Task) -> TaskData:
    study = planner.study
    config = study.config(variant, task, study.tried(variant)[0], seed=0, refit=False)
    return planner.bench.task(config, study.split_seed, allow_overlap=study.allow_overlap)


def _repeated(splits: Splits, num_images: int) -> Splits:
    """The requested number of training images, repeated if there are fewer; no validation."""
    train = splits.train
    assert train is not None
    chosen: Split = train.subset([index % len(train) for index in range(num_images)])
    return replace(splits, train=chosen, val=None, trainval=None, test=None)


def _estimate(planner: Planner, variant: Variant, task: Task, measured: _Measured) -> Estimate:
    study = planner.study
    listed = open_source(task.data).splits
    config = study.config(variant, task, study.tried(variant)[0], seed=0, refit=False)
    data, first = _data(planner, variant, task), _first_splits(planner, variant, task)
    on_test = planner.scored_on(task) == "test"
    final_train = data.refit.train if on_test and data.refits(task.refit) else first.train
    assert first.train is not None and final_train is not None
    num_val = 0 if first.val is None else len(first.val)
    num_test = len(listed["test"]) if on_test else num_val
    num_final = len(study.seeds)
    num_select = num_selection_cells(study, variant, task)
    peeks = config.epochs if study.protocol == "as-published" else 1
    select = _seconds(measured, config, len(first.train), num_val * (1 + config.epochs))
    final = _seconds(measured, config, len(final_train), num_test * peeks)
    return Estimate(
        label=variant.label,
        task=task.name,
        num_cells=num_select + num_final,
        step_ms=measured.step_ms,
        hours=(num_select * select + num_final * final) / 3600,
        peak_mib=measured.peak_mib,
        num_trainable=measured.num_trainable,
    )


def _seconds(measured: _Measured, config: Any, num_train: int, num_scored: int) -> float:
    if measured.step_ms is None:  # features once; solving on them takes less
        return (num_train + num_scored) * measured.score_ms / 1000
    steps = config.epochs * math.ceil(num_train / config.batch_size)
    return (steps * measured.step_ms + num_scored * measured.score_ms) / 1000
