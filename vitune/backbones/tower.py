"""Logits from any backbone's output, and a classifier for a tower without one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitune.backbones.tokens import num_prefix_tokens
from vitune.errors import BackboneError


class TowerClassifier(nn.Module):
    """logits = head(pooled output of tower(images)), for vision towers without a classifier.

    The pooled output is the tower's own `pooler_output`; without one, the class token of the last
    hidden state, or the mean over tokens if there is no class token.

    Shapes: images (b, 3, height, width) -> (b, c).

    Args:
        tower: a transformers vision model.
        head: takes the pooled width; `nn.Identity` gives features.
    """

    base_model_prefix = ""
    """PEFT calls this on any model with a transformers `config`; CLIP's towers need it."""

    def __init__(self, tower: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.head = head
        self.config = getattr(tower, "config", None)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (b, c) of a batch of preprocessed images."""
        output = self.tower(images)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            tokens = output.last_hidden_state  # (b, n, d)
            prefix = num_prefix_tokens(self.tower)
            pooled = tokens[:, 0] if prefix else tokens.mean(dim=1)  # (b, d)
        logits: Tensor = self.head(pooled)
        return logits


def logits_of(output: Any) -> Tensor:
    """The logits (b, c) in a backbone's output: a tensor, or an object or mapping with `logits`.

    A pair of tensors (a distilled model while it trains) gives the mean of the two.

    Raises:
        BackboneError: there are no logits in it.
    """
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if isinstance(found, Tensor):
        return found
    if isinstance(output, tuple) and output and all(isinstance(part, Tensor) for part in output):
        return torch.stack(output).mean(dim=0)  # (b, c)
    raise BackboneError(
        f"output of the backbone: got {type(output).__name__}, expected logits: a tensor or an "
        f"object with .logits. A vision tower without a classifier needs num_classes."
    )
