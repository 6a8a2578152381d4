"""Which of a table's methods can be told apart: every pair's interval, and the ranking of all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from typing import Protocol

import numpy as np

from vitune.bench.study.cells import CellResult, Scores
from vitune.bench.study.scores import unpacked, unpacked_groups
from vitune.bench.tables.mixed_model import Difference, Runs, difference, holm
from vitune.bench.tables.ranking import MIN_METHODS, MIN_TASKS, Ranking, ranking

HONEST = "honest"

RunsOf = Mapping[tuple[str, str, str, str], Runs]
"""By label, backbone, split and task."""


class Scored(Protocol):
    """One method on one task: `Figure`."""

    @property
    def exact(self) -> Fraction: ...


class Row(Protocol):
    """One method under one protocol: `TableRow`."""

    @property
    def label(self) -> str: ...
    @property
    def protocol(self) -> str: ...
    @property
    def backbone(self) -> str: ...
    @property
    def scored_on(self) -> str: ...
    @property
    def figures(self) -> Mapping[str, Scored]: ...
    @property
    def standings(self) -> Mapping[str, Fraction]: ...


def differences_of(
    results: Iterable[CellResult], rows: Sequence[Row], tasks: Sequence[str]
) -> tuple[Difference, ...]:
    """Every pair of honest rows on the same backbone and split, corrected for their number."""
    runs, names = _runs(results), _names(_honest(rows))
    found = []
    for first, second in combinations(_honest(rows), 2):
        if _kind(first) != _kind(second):
            continue
        shared = [task for task in tasks if task in first.figures and task in second.figures]
        if shared:
            sides = [
                [runs[row.label, row.backbone, row.scored_on, task] for task in shared]
                for row in (first, second)
            ]
            pairs = list(zip(*sides, strict=True))
            found.append(difference(names[_place(first)], names[_place(second)], pairs))
    return corrected(found)


def corrected(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    """The same with Holm's correction over all of them, for either of their two tests."""
    these = [index for index, found in enumerate(differences) if found.on_these is not None]
    others = [index for index, found in enumerate(differences) if found.wilcoxon_p is not None]
    on_these = holm([found.on_these.p_value for found in differences if found.on_these])
    signed = holm([found.wilcoxon_p for found in differences if found.wilcoxon_p is not None])
    adjusted = dict(zip(these, on_these, strict=True))
    adjusted_ranks = dict(zip(others, signed, strict=True))
    return tuple(
        replace(found, holm_p=adjusted.get(index), wilcoxon_holm_p=adjusted_ranks.get(index))
        for index, found in enumerate(differences)
    )


def ranking_of(rows: Sequence[Row], tasks: Sequence[str]) -> tuple[Ranking | None, str]:
    """The ranking of the honest rows over the tasks that all of them have, or the reason for none.

    Returns:
        The ranking and "", or None and a sentence; an empty one if no ranking is expected.
    """
    honest = _honest(rows)
    shared = [task for task in tasks if all(task in row.standings for row in honest)]
    if len(honest) < MIN_METHODS or len(tasks) < 2:
        return None, ""
    if len({_kind(row) for row in honest}) > 1:
        return None, "No critical-difference diagram: rows are from several backbones or splits."
    if len(shared) < MIN_TASKS:
        return None, (
            f"No critical-difference diagram: it ranks methods over tasks, and {len(shared)} tasks "
            f"that all methods have are too few for that ({MIN_TASKS} are needed)."
        )
    return ranking({row.label: [row.standings[t] for t in shared] for row in honest}), ""


def _runs(results: Iterable[CellResult]) -> RunsOf:
    """The honest runs of every row and task, in the order of their seeds."""
    members: dict[tuple[str, str, str, str], list[CellResult]] = defaultdict(list)
    for result in results:
        if result.protocol == HONEST and result.scores is not None:
            place = (result.label, str(result.config["backbone"]), result.scored_on, result.task)
            members[place].append(result)
    return {place: _runs_of(sorted(own, key=lambda r: r.seed)) for place, own in members.items()}


def _runs_of(results: Sequence[CellResult]) -> Runs:
    scores = [result.scores for result in results if result.scores is not None]
    counts = {score.num_images for score in scores}
    num_images = counts.pop() if len(counts) == 1 else None
    kept = num_images is not None and all(score.correct for score in scores)
    return Runs(
        accuracies=tuple(score.top1 for score in scores),
        num_images=num_images,
        correct=(
            np.stack([unpacked(score.correct, score.num_images) for score in scores])
            if kept
            else None
        ),
        groups=_groups(scores) if kept else None,
        images=results[0].split_hashes.get(results[0].scored_on, ""),
        seeds=tuple(result.seed for result in results),
    )


def _groups(scores: Sequence[Scores]) -> np.ndarray | None:
    """The group of each image, if the runs agree about them."""
    known = {score.groups for score in scores}
    text = known.pop() if len(known) == 1 else None
    return None if text is None else unpacked_groups(text)


def _honest(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.protocol == HONEST]


def _place(row: Row) -> tuple[str, str, str]:
    return row.label, *_kind(row)


def _names(rows: Sequence[Row]) -> dict[tuple[str, str, str], str]:
    """What to call each row: its label, with whatever else the rows differ in."""
    backbones, splits = ({_kind(row)[part] for row in rows} for part in (0, 1))
    return {
        _place(row): " ".join(
            [
                row.label,
                *([row.backbone] if len(backbones) > 1 else []),
                *(["(validation)"] if len(splits) > 1 and row.scored_on == "val" else []),
            ]
        )
        for row in rows
    }


def _kind(row: Row) -> tuple[str, str]:
    return row.backbone, row.scored_on
