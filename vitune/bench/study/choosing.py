"""The choice among the settings that stage 1 tried, on validation alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vitune.bench.study.cells import CellResult
from vitune.bench.study.plan import Setting, Study, Task, Variant


@dataclass(frozen=True)
class Choice:
    """What stage 1 chose for a variant on a task.

    Args:
        setting: the chosen one.
        val: its validation accuracy, mean over the selection seeds; None if there was nothing to
            choose from.
        tried: every setting with its validation accuracy, None for one that did not finish.
    """

    label: str
    task: str
    setting: dict[str, Any]
    val: float | None
    tried: tuple[tuple[dict[str, Any], float | None], ...] = ()


def needs_selection(study: Study, variant: Variant) -> bool:
    """Whether there is more than one setting to choose from."""
    return study.search is not None or len(study.grid_of(variant)) > 1


def num_selection_cells(study: Study, variant: Variant, task: Task) -> int:
    """Number of stage-1 cells of a variant on a task; for a pruning search, the maximum."""
    if not needs_selection(study, variant):
        return 0
    if study.search is None:
        settings = len(study.grid_of(variant))
    else:
        settings = study.search.num_trials * len(study.search.rungs(study.epochs_of(variant, task)))
    return settings * len(study.selection_seeds)


def choose(
    study: Study, variant: Variant, task: Task, results: Iterable[CellResult]
) -> Choice | None:
    """The setting with the best mean validation accuracy; None if no setting finished.

    Ties go to the lower learning rate, then to the lower weight decay, then to the grid's order.
    """
    settings = study.grid_of(variant)
    if not needs_selection(study, variant):
        return Choice(variant.label, task.name, dict(settings[0]), None)
    return best_of(study, variant, task, _by_setting(study, settings, results))


def best_of(
    study: Study,
    variant: Variant,
    task: Task,
    by_setting: Sequence[tuple[Setting, float | None]],
) -> Choice | None:
    """The choice among settings with their mean validation accuracies, None for unfinished ones."""
    best: tuple[float, float, float] | None = None
    chosen: Choice | None = None
    tried = tuple((dict(setting), mean) for setting, mean in by_setting)
    for setting, mean in by_setting:
        if mean is None:
            continue
        config = study.config(variant, task, setting, seed=0, refit=False)
        rank = (mean, -(config.lr or 0.0), -(config.weight_decay or 0.0))
        if best is None or rank > best:
            best = rank
            chosen = Choice(variant.label, task.name, dict(setting), mean, tried)
    return chosen


def _by_setting(
    study: Study, settings: Sequence[Setting], results: Iterable[CellResult]
) -> list[tuple[Setting, float | None]]:
    """Mean validation accuracy by setting; None if one of its seeds did not finish."""
    ordered = iter(results)
    found: list[tuple[Setting, float | None]] = []
    for setting in settings:
        values = [next(ordered).val for _ in study.selection_seeds]
        known = [value for value in values if value is not None]
        found.append((setting, sum(known) / len(known) if len(known) == len(values) else None))
    return found
