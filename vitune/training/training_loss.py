"""The training loss that the settings name, ready for a model."""

from __future__ import annotations

from torch import nn

from vitune.methods import noise_plan
from vitune.objectives import Objective, new_objective
from vitune.training.settling import typed_arguments
from vitune.training.train_config import TrainConfig


def objective_of(config: TrainConfig) -> Objective:
    """The loss with every argument; an impossible one is refused."""
    smoothing = {"label_smoothing": config.label_smoothing}
    return new_objective(config.objective, {**smoothing, **typed_arguments(config.objective_args)})


def objective_for(model: nn.Module, config: TrainConfig) -> Objective:
    """The loss for `model`; refused where the model's method cannot have it."""
    objective = objective_of(config)
    objective.prepare(noise_plan(model) if objective.needs_noise_plan else None)
    return objective
