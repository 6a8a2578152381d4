"""What a search tried: one record per rung of a trial, the choice among them, and the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter

from vitune.ops import paired


@dataclass(frozen=True)
class Attempt:
    """One rung of one trial.

    Args:
        factor: learning rate divided by the rule's.
        loss, accuracy: on validation; the loss is cross-entropy at the best temperature.
        epochs: length of the rung; 0 for the solved probe.
        epoch: the epoch whose weights were scored.
        losses: (n,) loss of each validation image.
        head_lr: learning rate of the classifier, if it has its own.
        start: "probe" or "plain".
        augment: augmentation during training.
        share: how far validation moved from the probe to the trained weights.
        failure: why training gave up; its losses are then infinite. None if it did not.
    """

    __pydantic_config__: ClassVar = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    trial: int
    method: str
    factor: float
    lr: float | None
    epochs: int
    epoch: int
    loss: float
    accuracy: float
    temperature: float
    seconds: float
    losses: np.ndarray
    head_lr: float | None = None
    start: str = "probe"
    augment: str = "none"
    share: float | None = None
    failure: str | None = None

    @property
    def has_failed(self) -> bool:
        """Whether there is no result, only the reason why."""
        return self.failure is not None

    def row(self) -> dict[str, Any]:
        """The entry in tune.json, without the losses per image; JSON has no infinite loss."""
        row = {key: value for key, value in vars(self).items() if key != "losses"}
        return {**row, "loss": None} if self.has_failed else row

    @classmethod
    def of_row(cls, row: Mapping[str, Any], losses: np.ndarray) -> Attempt:
        """The attempt that `row` describes. Shapes: losses (n,).

        Raises:
            ValueError: an entry is missing, unknown or of another type.
        """
        loss = math.inf if row.get("loss") is None else row["loss"]
        values = {**row, "loss": loss, "losses": losses}
        found: Attempt = TypeAdapter(cls).validate_python(values)
        return found


def choose(
    attempts: Sequence[Attempt],
    can_refit: Callable[[Attempt], bool] = lambda one: True,
    groups: np.ndarray | None = None,
) -> Attempt:
    """Of the attempts within one standard error of the best, the one closest to the rule's rate.

    The standard error is that of the paired difference of losses per image. Of two attempts that
    are equally close, the one with the lower loss is chosen.

    Args:
        can_refit: whether there is time to train an attempt again. Those for which there is none
            are left out; if that is all, the one that took the shortest time is chosen.
        groups: of the validation images, (n,), if they are known.
    """
    best = min(attempts, key=lambda one: one.loss)
    near = []
    for one in attempts:
        mean, error = paired(torch.from_numpy(one.losses), torch.from_numpy(best.losses), groups)
        if one is best or (one.epochs and mean <= error):
            near.append(one)
    in_time = [one for one in near if can_refit(one)]
    if not in_time:
        return min(near, key=lambda one: one.seconds)
    return min(in_time, key=lambda one: (abs(float(np.log(one.factor))), one.loss))


def outcome(attempts: Sequence[Attempt], chosen: Attempt, groups: np.ndarray | None = None) -> str:
    """One line: the chosen setting beside the solved probe, with the error of the difference."""
    probe = next((one for one in attempts if not one.epochs), None)
    accuracy = f"validation accuracy {100 * chosen.accuracy:.1f} %"
    if not chosen.epochs:
        return f"chosen: the solved linear probe, {accuracy}; no trained setting was better"
    settings = f"chosen: {chosen.method}, rate {chosen.lr:.2g}, {_length(chosen)}"
    if probe is None:
        return f"{settings}: {accuracy}"
    gain, error = paired(torch.from_numpy(probe.losses), torch.from_numpy(chosen.losses), groups)
    lower = "lower" if gain > 0 else "higher"
    return (
        f"{settings}: {accuracy} against {100 * probe.accuracy:.1f} % of the solved linear probe "
        f"on {len(chosen.losses)} images, "
        f"calibrated cross-entropy {abs(gain):.3f} ± {error:.3f} {lower}"
    )


def _length(chosen: Attempt) -> str:
    """Epochs of the attempt, and of the final run, which ends where validation was best."""
    if not 0 < chosen.epoch < chosen.epochs:
        return f"{chosen.epochs} epochs"
    return f"{chosen.epoch} epoch{'s' * (chosen.epoch > 1)} (the best of {chosen.epochs})"


def report(
    attempts: Sequence[Attempt],
    chosen: Attempt,
    used_s: float,
    groups: np.ndarray | None = None,
) -> str:
    """All attempts as a Markdown table, best first."""
    lines = [
        f"# What was tried in {used_s:.0f} s",
        "",
        f"C{outcome(attempts, chosen, groups)[1:]}.",
        "",
        "Loss is validation cross-entropy at the best temperature. Difference is the distance to "
        "the lowest loss, ± its standard error. Of the settings within one standard error, the one "
        "closest to vitune's own rate is chosen.",
        "",
        "| | method | rate | rate over rule | epochs | loss | difference | accuracy, % | s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    best = min(attempts, key=lambda one: one.loss)
    for one in sorted(attempts, key=lambda one: one.loss):
        mean, error = paired(torch.from_numpy(one.losses), torch.from_numpy(best.losses), groups)
        mark = "chosen" if one is chosen else ""
        rate = "solved" if one.lr is None else f"{one.lr:.2g}"
        difference = "" if one is best else f"{mean:.3f} ± {error:.3f}"
        figures = f"{one.loss:.3f} | {difference} | {100 * one.accuracy:.1f}"
        lines.append(
            f"| {mark} | {one.method} | {rate} | {one.factor:.2g} | {one.epochs or '–'} | "
            f"{'failed | | ' if one.has_failed else figures} | {one.seconds:.0f} |"
        )
    failures = [one for one in attempts if one.has_failed]
    if failures:
        lines += ["", "What failed, and why:", ""]
        lines += [
            f"- {one.method} at rate {one.lr:.2g}, {one.epochs} epochs: {one.failure}"
            for one in failures
        ]
    return "\n".join(lines) + "\n"
