"""The official recipe, test peeking included, in order to measure what it inflates.

This is the only file of vitune that looks at a test split while a network trains; every result
that comes of it carries the protocol's name and the honest figure of the same run beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from vitune.data import Split
from vitune.errors import VituneError, nearest
from vitune.training import Observer
from vitune.training.loop import Loop
from vitune.training.optimiser import new_schedule

RECIPE_KEYS = (
    "element_dropout",
    "schedule_lag",
    "skip_epochs",
    "cooldown_epochs",
    "restart_epochs",
    "restart_factor",
)

LEAST = {"skip_epochs": 0, "cooldown_epochs": 0, "restart_epochs": 0, "restart_factor": 1}
"""Smallest value of each count in a recipe."""


class LaggingSchedule:
    """One learning rate an epoch, that of the epoch before: `scheduler.step(epoch)` after it.

    Args:
        schedule: sets the rate as a function of the optimiser step.
        steps_per_epoch: optimiser steps.
    """

    def __init__(self, schedule: Any, steps_per_epoch: int) -> None:
        self.schedule, self.steps_per_epoch = schedule, steps_per_epoch

    def step_update(self, step: int) -> None:
        """The rate for optimiser step `step`, counted from 0."""
        epoch = step // self.steps_per_epoch
        self.schedule.step_update(max(0, epoch - 1) * self.steps_per_epoch)


class WarmRestarts:
    """Cosine to 0 that starts over, without warm-up (SGDR, Loshchilov and Hutter 2017, Eq. 5).

    Args:
        optimiser: whose groups' `initial_lr` are the peaks.
        steps_per_epoch: optimiser steps.
        first: epochs of the first period.
        factor: each period has so many times the epochs of the one before.
    """

    def __init__(
        self, optimiser: Optimizer, steps_per_epoch: int, first: int, factor: int = 1
    ) -> None:
        self.groups, self.steps_per_epoch = optimiser.param_groups, steps_per_epoch
        self.peaks = [group["initial_lr"] for group in self.groups]
        self.first, self.factor = first, factor

    def step_update(self, step: int) -> None:
        """The rate of optimiser step `step`, counted from 0; constant within an epoch."""
        epoch, period = step // self.steps_per_epoch, self.first
        while epoch >= period:
            epoch, period = epoch - period, period * self.factor
        share = (1 + math.cos(math.pi * epoch / period)) / 2
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group["lr"] = share * peak


@dataclass
class PublishedRecipe(Observer):
    """Watches a run from outside and changes what the official scripts do otherwise.

    Args:
        test: scored after every epoch.
        element_dropout: p of element-wise dropout on both residual branches, rising linearly from
            0 in the first block to p in the last (the official code calls it drop path).
        schedule_lag: the learning rate lags an epoch behind and stands still within one.
        skip_epochs: epochs at the start that the maximum leaves out.
        cooldown_epochs: the run's last epochs, at the least rate, after the cosine has ended; the
            official scripts run them on top of the epochs that the paper names.
        restart_epochs: the cosine starts over after so many epochs, without warm-up, to the end
            of the run, whatever the cooldown; 0 is never.
        restart_factor: of each period's length by the one before.
    """

    test: Split
    element_dropout: float = 0.0
    schedule_lag: bool = True
    skip_epochs: int = 1
    cooldown_epochs: int = 0
    restart_epochs: int = 0
    restart_factor: int = 1
    test_accuracies: list[float] = field(default_factory=list)

    @classmethod
    def make(cls, recipe: Mapping[str, Any], test: Split) -> PublishedRecipe:
        """The observer for a recipe's plain values.

        Raises:
            VituneError: an unknown key, or a dropout outside [0, 1).
        """
        check_recipe(recipe)
        return cls(test, **recipe)

    def started(self, loop: Loop) -> None:
        """Put in the dropout and the lag before the first step."""
        self.loop = loop
        self.test_accuracies.clear()
        if self.element_dropout:
            add_element_dropout(loop.model, self.element_dropout)
        if self.restart_epochs:
            loop.schedule = WarmRestarts(
                loop.raw_optimiser, loop.steps_per_epoch, self.restart_epochs, self.restart_factor
            )
        elif self.cooldown_epochs:
            loop.schedule = self._cosine_before_cooldown(loop)
        if self.schedule_lag:
            loop.schedule = LaggingSchedule(loop.schedule, loop.steps_per_epoch)

    def _cosine_before_cooldown(self, loop: Loop) -> Any:
        steps, config = loop.steps_per_epoch, loop.config
        for group in loop.raw_optimiser.param_groups:  # a new schedule takes it for the peak
            group["lr"] = group["initial_lr"]
        return new_schedule(
            loop.raw_optimiser,
            num_steps=steps * max(1, config.epochs - self.cooldown_epochs),
            warmup_steps=round(steps * config.resolved_warmup_epochs),
            min_lr=config.min_lr,
        )

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """Score the test split, as the official scripts do."""
        self.test_accuracies.append(self.loop.evaluate(self.test)[1])

    def outcome(self) -> dict[str, Any]:
        """The published figure (best test epoch) and the last epoch's, from the same run."""
        eligible = self.test_accuracies[min(self.skip_epochs, len(self.test_accuracies) - 1) :]
        best = max(eligible)
        return {
            "test_by_epoch": list(self.test_accuracies),
            "test_max": best,
            "best_epoch": 1 + self.test_accuracies.index(best),
            "test_last": self.test_accuracies[-1],
        }


def check_recipe(recipe: Mapping[str, Any]) -> None:
    """See that a recipe's keys and values are usable.

    Raises:
        VituneError: an unknown key, a count that is none, or a dropout outside [0, 1).
    """
    for key in recipe:
        if key not in RECIPE_KEYS:
            raise VituneError(
                f"recipe: got {key!r}, expected a known deviation. {nearest(key, RECIPE_KEYS)}"
            )
    for key, least in LEAST.items():
        value = recipe.get(key, least)
        if type(value) is not int or value < least:
            raise VituneError(f"{key}: got {value!r}, expected a whole number, {least} or more.")
    rate = recipe.get("element_dropout", 0.0)
    if not 0 <= rate < 1:
        raise VituneError(f"element_dropout: got {rate!r}, expected a rate in [0, 1).")


def add_element_dropout(model: nn.Module, rate: float) -> None:
    """Element-wise dropout on the outputs of every block's attention and MLP, 0 to `rate`.

    Raises:
        VituneError: the network has no blocks with `attn` and `mlp`.
    """
    blocks = [m for m in model.modules() if hasattr(m, "attn") and hasattr(m, "mlp")]
    if not blocks:
        raise VituneError(
            "element_dropout: got a network without blocks of attn and mlp, expected a timm ViT."
        )
    rates = torch.linspace(0, rate, len(blocks)).tolist()
    for block, p in zip(blocks, rates, strict=True):
        for name in ("attn", "mlp"):
            block.get_submodule(name).register_forward_hook(_dropout(p))


def _dropout(p: float) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return F.dropout(output, p, module.training)

    return hook
