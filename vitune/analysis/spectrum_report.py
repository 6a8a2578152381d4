"""`spectrum(model)`: the figures of every changed weight, their summary per role, JSON and CSV."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitune.analysis.geometry import relative_deviation
from vitune.analysis.intruders import IntruderRule, Side
from vitune.analysis.pairs import WeightPair, weight_pairs
from vitune.analysis.tabulation import csv_text, rounded, weight_records
from vitune.analysis.weight_change import EXACT_LIMIT, ChangedWeight, compare_weights
from vitune.errors import VituneError
from vitune.files import write_atomic

DRIFT_K = 8
"""Dimension of the subspaces whose angles measure drift in summaries and plots."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class RoleSummary:
    """Means over the changed matrices of one role, or over its vectors if it has no matrix.

    Args:
        num_weights: number of weights averaged.
        subspace_degrees: mean principal angle, left and right, of the top-8 subspaces;
            left_degrees, right_degrees each alone.
        left_share, right_share: part of ‖ΔW‖_F² in the top-8 left and right subspaces.
        left_loss, right_loss: `BasisLoss`.
        core_diagonal, core_off_diagonal, core_outside, core_leading: `Core`'s shares.
        num_intruders: for the sides in the rule, the sum over the matrices, not a mean.
    """

    role: str
    num_weights: int
    relative_deviation: float | None
    spectrum_distortion: float | None
    effective_rank: float | None
    stable_rank: float | None
    subspace_degrees: float | None
    left_degrees: float | None
    right_degrees: float | None
    left_share: float | None
    right_share: float | None
    left_loss: float | None
    right_loss: float | None
    core_diagonal: float | None
    core_off_diagonal: float | None
    core_outside: float | None
    core_leading: float | None
    num_intruders: int | None


@dataclass(frozen=True)
class SpectrumReport:
    """What an adaptation did to a network's weights.

    Args:
        weights: changed matrices and vectors in the network's order.
        num_unchanged: matrices outside the head that did not change.
        num_unmergeable: adapted modules that do more than change a weight and are left out.
        note: what is left out, in sentences.
        intruder_rule: what counted as an intruder dimension.
    """

    weights: tuple[ChangedWeight, ...]
    num_unchanged: int
    num_unmergeable: int
    note: str
    intruder_rule: IntruderRule = field(default_factory=IntruderRule)

    @property
    def matrices(self) -> tuple[ChangedWeight, ...]:
        """The changed weights that have a `change`."""
        return tuple(weight for weight in self.weights if weight.change is not None)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles in the network's order."""
        return tuple(dict.fromkeys(weight.role for weight in self.weights))

    @property
    def summary(self) -> tuple[RoleSummary, ...]:
        """One entry per role."""
        by_role = {role: [w for w in self.weights if w.role == role] for role in self.roles}
        side = self.intruder_rule.side
        return tuple(summarise(role, weights, side) for role, weights in by_role.items())

    @property
    def overall(self) -> RoleSummary:
        """All changed matrices together, under the name "all"."""
        return summarise("all", self.matrices, self.intruder_rule.side)

    @property
    def subspace_drift_degrees(self) -> float | None:
        """Mean top-8 principal angle over all matrices outside the head, changed or not.

        An unchanged matrix counts with 0 degrees, so that a method that adapts few of them can be
        compared with one that adapts all. None if some of the adaptation is not in weights, or if
        no matrix has eight singular values.
        """
        angles = [drift for weight in self.weights if (drift := drift_degrees(weight)) is not None]
        counted = len(angles) + self.num_unchanged
        if self.num_unmergeable or not counted or (self.matrices and not angles):
            return None
        return math.fsum(angles) / counted

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, numbers to seven significant digits."""
        record = {
            "note": self.note,
            "intruder_rule": asdict(self.intruder_rule),
            "num_unchanged": self.num_unchanged,
            "num_unmergeable": self.num_unmergeable,
            "subspace_drift_degrees": self.subspace_drift_degrees,
            "overall": asdict(self.overall),
            "summary": {part.role: without_map_figures(part) for part in self.summary},
            "weights": [asdict(weight) for weight in self.weights],
        }
        values: dict[str, Any] = rounded(record)
        return values

    def to_json(self, path: str | Path) -> None:
        """Write `to_dict` to `path` atomically."""
        write_atomic(path, json.dumps(self.to_dict(), allow_nan=False) + "\n")

    def to_csv(self, path: str | Path) -> None:
        """Write one line per weight with every single-number figure, atomically."""
        write_atomic(path, csv_text(weight_records(self.weights)))


def spectrum(
    model: nn.Module,
    tuned: nn.Module | None = None,
    *,
    top: Sequence[int] = (1, DRIFT_K, 64),
    energy: float = 0.9,
    exact_limit: int = EXACT_LIMIT,
    seed: int = 0,
    intruders: IntruderRule | None = None,
    on_progress: Progress | None = None,
) -> SpectrumReport:
    """The SVD view of an adaptation: `compare_weights` for every weight that it changed.

    Takes what `weight_pairs` takes: a PEFT model of any method, or a base and a tuned network.
    The models are not changed. Matrices are processed in parallel, one per thread of
    `torch.get_num_threads()`.

    Args:
        top, energy, exact_limit, seed, intruders: as in `compare_weights`.
        on_progress: called as (done, total, name) after every weight.

    Raises:
        AdapterError: two networks with different weights.
        VituneError: a weight that is not finite (the text names it), or an option out of range.
    """
    pairs, rule = weight_pairs(model, tuned), intruders or IntruderRule()
    options: dict[str, Any] = {"top": top, "energy": energy, "exact_limit": exact_limit}
    options |= {"seed": seed, "intruders": rule}
    weights = []
    with _one_thread_each() as pool:
        changed = pool.map(lambda pair: _changed_weight(pair, options), pairs)
        for done, weight in enumerate(changed, start=1):
            weights.append(weight)
            if on_progress is not None:
                on_progress(done, len(pairs), weight.name)
    left_out = (pairs.num_unchanged, pairs.num_unmergeable, pairs.note)
    return SpectrumReport(tuple(weights), *left_out, rule)


def drift_degrees(weight: ChangedWeight) -> float | None:
    """Mean top-8 principal angle of one weight; None for vectors and for matrices below 8."""
    part = None if weight.change is None else weight.change.subspace(DRIFT_K)
    return None if part is None else part.mean_degrees


def summarise(role: str, weights: Sequence[ChangedWeight], side: Side = "both") -> RoleSummary:
    """Means over the matrices in `weights`, or over all of them if there are none."""
    changes = [weight.change for weight in weights if weight.change is not None]
    chosen = [weight for weight in weights if weight.change is not None] or list(weights)
    parts = [part for change in changes if (part := change.subspace(DRIFT_K)) is not None]
    cores = [change.core for change in changes if change.core is not None]
    losses = [change.basis_loss for change in changes if change.basis_loss is not None]
    return RoleSummary(
        role=role,
        num_weights=len(chosen),
        relative_deviation=_mean(weight.relative_deviation for weight in chosen),
        spectrum_distortion=_mean(change.spectrum_distortion for change in changes),
        effective_rank=_mean(change.effective_rank for change in changes),
        stable_rank=_mean(change.stable_rank for change in changes),
        subspace_degrees=_mean(part.mean_degrees for part in parts),
        left_degrees=_mean(part.mean_left_degrees for part in parts),
        right_degrees=_mean(part.mean_right_degrees for part in parts),
        left_share=_mean(part.left_share for part in parts),
        right_share=_mean(part.right_share for part in parts),
        left_loss=_mean(loss.left for loss in losses),
        right_loss=_mean(loss.right for loss in losses),
        core_diagonal=_mean(core.diagonal for core in cores),
        core_off_diagonal=_mean(core.off_diagonal for core in cores),
        core_outside=_mean(core.outside for core in cores),
        core_leading=_mean(core.leading for core in cores),
        num_intruders=sum(c.intruders.on(side) for c in changes) if changes else None,
    )


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """A pool of as many workers as torch has threads, each computing with one thread.

    A threaded SVD gains little, and loses much if other processes want the same cores: its threads
    wait for one another by spinning. Whole matrices in parallel do not wait. The setting applies to
    the worker threads only.
    """
    pool = ThreadPoolExecutor(
        torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _changed_weight(pair: WeightPair, options: dict[str, Any]) -> ChangedWeight:
    change = None
    if pair.is_matrix:
        try:
            change = compare_weights(pair.before, pair.after, **options)
        except VituneError as error:
            raise VituneError(f"{pair.name}, {error}") from error
    deviation = relative_deviation(pair.before, pair.after)
    return ChangedWeight(pair.name, pair.role, pair.block, pair.part, deviation, change)


def without_map_figures(part: RoleSummary) -> dict[str, Any]:
    """The figures of a summary's table; per-side and core figures have their own."""
    left_out = ("role", "left_degrees", "right_degrees")
    return {
        key: value
        for key, value in asdict(part).items()
        if key not in left_out and not key.startswith("core_")
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
