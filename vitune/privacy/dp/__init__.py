"""Training with differential privacy: per-sample gradients, Poisson batches, the budget."""

from vitune.privacy.dp.budget import Budget, require_opacus
from vitune.privacy.dp.per_sample import PerSampleGradients
from vitune.privacy.dp.poisson import PoissonBatches
from vitune.privacy.dp.private_step import PrivateStep

__all__ = ["Budget", "PerSampleGradients", "PoissonBatches", "PrivateStep", "require_opacus"]
