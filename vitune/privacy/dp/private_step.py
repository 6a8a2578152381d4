"""A training step with differential privacy: Opacus' optimiser over gradients per image."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.optim import Optimizer

from vitune.privacy.dp.budget import Budget
from vitune.privacy.dp.per_sample import PerSampleGradients


class PrivateStep:
    """Clip each image's gradient, add noise to the sum, step, account.

    The noise comes from the operating system's entropy: with the run's seed, which config.yaml
    tells, it could be subtracted again.

    Args:
        optimiser: of the trained parameters; its state stays its own.
        expected_batch: images per batch in the mean, which the noisy sum is divided by.
    """

    def __init__(
        self,
        model: PeftModel,
        optimiser: Optimizer,
        budget: Budget,
        expected_batch: int,
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        from opacus.optimizers import DPOptimizer

        self.budget = budget
        self.gradients = PerSampleGradients(model, label_smoothing=label_smoothing)
        device = next(model.parameters()).device
        generator = torch.Generator(device)
        generator.seed()
        self.optimiser: Any = DPOptimizer(
            optimiser,
            noise_multiplier=budget.noise_multiplier,
            max_grad_norm=budget.clip,
            expected_batch_size=expected_batch,
            generator=generator,
        )

    def __call__(self, images: Tensor, targets: Tensor) -> float:
        """One step on a batch, an empty one included; returns the mean loss."""
        self.gradients.check_norms()
        loss = self.gradients(images, targets)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.budget.step()
        return loss
