"""What every epoch starts with: its own random streams, and modules in training mode."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn


def seed_epoch(seed: int, epoch: int, process: int) -> None:
    """Seed PyTorch, NumPy and Python from (seed, epoch, process), so that a run can be resumed."""
    state = int(np.random.SeedSequence((seed, epoch, process)).generate_state(1)[0])
    torch.manual_seed(state)
    np.random.seed(state)
    random.seed(state)


def training_mode(model: nn.Module) -> None:
    """Training mode, except that batch norms keep their pre-trained statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
