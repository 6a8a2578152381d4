"""The official recipe, including test peeking, in order to measure the inflation.

This is the only file of vitune that reads a test split while a network trains; every such result
carries the protocol's name and the honest figure of the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.bench.study.official_schedule import OfficialSchedule
from vitune.bench.study.recipe import OfficialRecipe
from vitune.data import Split
from vitune.errors import VituneError
from vitune.training import Observer
from vitune.training.observer import Running


@dataclass
class PublishedRecipe(Observer):
    """Observes a run and applies the deviations of the official scripts.

    Args:
        test: scored after every epoch, or every `recipe.score_every` epochs and the last. If the
            run averages its weights, the averages are scored, as in the scripts.
        recipe: the deviations of those scripts.
    """

    test: Split
    recipe: OfficialRecipe = field(default_factory=OfficialRecipe)
    test_accuracies: dict[int, float] = field(default_factory=dict)

    @classmethod
    def make(cls, recipe: Mapping[str, Any], test: Split) -> PublishedRecipe:
        """The observer for a recipe's plain values.

        Raises:
            VituneError: OfficialRecipe refuses a value.
        """
        return cls(test, OfficialRecipe.make(recipe))

    def started(self, loop: Running) -> None:
        """Install the dropout and the schedule before the first step."""
        self.loop = loop
        self.test_accuracies.clear()
        if self.recipe.element_dropout:
            add_element_dropout(loop.model, self.recipe.element_dropout)
        if self.recipe.renormalised_drop_path:
            renormalise_drop_path(loop.model)
        config = loop.config
        loop.schedule = OfficialSchedule(
            loop.raw_optimiser,
            self.recipe,
            steps_per_epoch=loop.steps_per_epoch,
            epochs=max(1, config.epochs - self.recipe.cooldown_epochs),
            warmup_epochs=config.resolved_warmup_epochs,
            warmup_lr=config.warmup_lr,
            min_lr=config.min_lr,
        )

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """Score the test split, as the official scripts do."""
        epoch, loop = int(row["epoch"]), self.loop
        if epoch % self.recipe.score_every and epoch < loop.config.epochs:
            return
        with loop.scored_weights():
            self.test_accuracies[epoch] = loop.evaluate(self.test)[1]

    def outcome(self) -> dict[str, Any]:
        """The published figure (best test epoch) and the last epoch's, from the same run."""
        scored = list(self.test_accuracies.items())
        eligible = [pair for pair in scored if pair[0] > self.recipe.skip_epochs] or scored[-1:]
        epoch, best = max(eligible, key=lambda pair: pair[1])
        return {
            "test_by_epoch": [accuracy for _, accuracy in scored],
            "scored_epochs": [number for number, _ in scored],
            "test_max": best,
            "best_epoch": epoch,
            "test_last": scored[-1][1],
        }


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


class RenormalisedDropPath(DropPath):
    """Stochastic depth whose mask has mean 1 over every batch, not in expectation alone."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return x
        keep = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1 - self.drop_prob)
        return x * (keep / keep.mean().clamp(min=1e-12))


def renormalise_drop_path(model: nn.Module) -> None:
    """Replace every DropPath with `RenormalisedDropPath`."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is DropPath:
                setattr(module, name, RenormalisedDropPath(child.drop_prob))
