"""The learning rate as published scripts step it: warm-up, cosine, restarts, per step or epoch."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from vitune.bench.study.recipe import OfficialRecipe


class OfficialSchedule:
    """The rate η(t) at epoch t, set for every group before each optimiser step.

    Warm-up: η(t) = η₀ + (η₁ - η₀) t / w for t < w. Cosine: η(t) = η₋ + (η₁ - η₋)(1 + cos πφ) / 2,
    φ = (t - w) / (T - w) where it begins after the warm-up, t / T where it counts it; η₋ from T on.
    Held per epoch, t is the epoch's number less the lag, 0 at least; else it grows with each step.
    With restarts there is no warm-up, and T is the length of the present cosine, t counts within
    it, and η₋ = 0 (SGDR, Loshchilov and Hutter 2017, Eq. 5).

    Args:
        optimiser: its groups' `initial_lr` are the peaks η₁.
        recipe: the script's deviations.
        steps_per_epoch: optimiser steps.
        epochs: T.
        warmup_epochs: w.
        warmup_lr: η₀.
        min_lr: η₋.
    """

    def __init__(
        self,
        optimiser: Optimizer,
        recipe: OfficialRecipe,
        *,
        steps_per_epoch: int,
        epochs: int,
        warmup_epochs: float,
        warmup_lr: float,
        min_lr: float,
    ) -> None:
        self.groups = optimiser.param_groups
        self.peaks = [group.setdefault("initial_lr", group["lr"]) for group in self.groups]
        self.recipe, self.steps_per_epoch, self.epochs = recipe, steps_per_epoch, epochs
        self.warmup_epochs, self.warmup_lr, self.min_lr = warmup_epochs, warmup_lr, min_lr

    def step_update(self, step: int) -> None:
        """Set the rates for optimiser step `step`, counted from 0."""
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group["lr"] = self.rate(step, peak)

    def rate(self, step: int, peak: float) -> float:
        """η at a step, for a group with peak `peak`."""
        epoch = self._epoch(step)
        if self.recipe.restart_epochs:
            return self._restarted(epoch) * peak
        if epoch < self.warmup_epochs:
            return self.warmup_lr + (peak - self.warmup_lr) * epoch / self.warmup_epochs
        begin = self.warmup_epochs if self.recipe.cosine_from == "warmup" else 0.0
        if epoch >= self.epochs:
            return max(self.min_lr, self.recipe.least_factor * peak)
        cosine = _half_cosine((epoch - begin) / (self.epochs - begin))
        rate = self.min_lr + (peak - self.min_lr) * cosine
        return max(rate, self.recipe.least_factor * peak)

    def _epoch(self, step: int) -> float:
        if self.recipe.rate_per == "step":
            return step / self.steps_per_epoch
        return max(0, step // self.steps_per_epoch - self.recipe.lag_epochs)

    def _restarted(self, epoch: float) -> float:
        period = self.recipe.restart_epochs
        while epoch >= period:
            epoch, period = epoch - period, period * self.recipe.restart_factor
        return _half_cosine(epoch / period)


def _half_cosine(phase: float) -> float:
    return (1 + math.cos(math.pi * phase)) / 2
