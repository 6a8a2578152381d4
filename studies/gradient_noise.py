"""How far estimated gradients of RLRR's scales are from the exact ones, in units that matter.

    python studies/gradient_noise.py [--data SPEC] [--steps 25,250] [--lr 0.03]

The unit is the noise between mini-batches, √(Σ var) over all scales: an error of 1 is what halving
the batch costs, an error e makes a batch of b images as good as b / (1 + e²). Bundled backbone,
batch 32, after some steps of training. docs/performance.md holds the figures.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitune.adapters import attach
from vitune.backbones import load_backbone, logits_of
from vitune.data import EpochSampler, Split, batches, load_splits, normalise
from vitune.ops import sample_tokens
from vitune.preprocessing import Preprocessing
from vitune.training.optimiser import new_optimiser

OP: Any = sys.modules["vitune.ops.rescaling"]
BACKBONE = "vitune/vit_micro_patch4_32"
CIFAR = "vtab:../shared/data/vtab-1k/cifar"
BATCH, NUM_BATCHES = 32, 24

Estimate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def sketched(grad: Tensor, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Tokens with random signs, summed in fewer buckets: (m, o), (m, i)."""
    num_buckets = math.ceil(share * len(x))
    signs = torch.randint(0, 2, (len(x), 1)) * 2.0 - 1
    bucket = torch.arange(len(x)) % num_buckets

    def summed(rows: Tensor) -> Tensor:
        sums = rows.new_zeros(num_buckets, rows.shape[1])
        return sums.index_add_(0, bucket, rows * signs)

    return summed(grad), summed(x)


def uniform(grad: Tensor, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Tokens drawn with equal chances: (m, o), (m, i)."""
    kept = torch.randperm(len(x))[: math.ceil(share * len(x))]
    return grad[kept] * (len(x) / len(kept)), x[kept]


def estimates() -> dict[str, Estimate]:
    """What is compared, by name."""
    ways = {"by importance": sample_tokens, "uniform": uniform, "sketched": sketched}
    return {
        f"{name}, 1/{parts}": partial(way, share=1 / parts)
        for name, way in ways.items()
        for parts in (2, 4, 8)
    }


class Watch:
    """Takes the exact and the estimated gradients of every linear as training computes them."""

    def __init__(self) -> None:
        self.ways, self.exactly = estimates(), OP._scale_gradients
        self.now: dict[str, list[Tensor]] = {}

    def __call__(self, grad: Tensor, x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        exact: tuple[Tensor, Tensor] = self.exactly(grad, x, *rest)
        found = {name: self.exactly(*way(grad, x), *rest) for name, way in self.ways.items()}
        for name, parts in {"exact": exact, **found}.items():
            self.now.setdefault(name, []).append(torch.cat([part.flatten() for part in parts]))
        return exact

    def take(self) -> dict[str, Tensor]:
        """The gradients since the last call, one vector a way."""
        taken = {name: torch.cat(parts) for name, parts in self.now.items()}
        self.now.clear()
        return taken


def stream(split: Split, preprocessing: Preprocessing) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches without end."""
    sampler, epoch = EpochSampler(len(split), seed=0), 0
    while True:
        sampler.set_epoch(epoch)
        for one in batches(split, BATCH, sampler=sampler, drop_last=True):
            yield normalise(one["images"], preprocessing), one["labels"]
        epoch += 1


def errors(data: str, num_steps: int, lr: float) -> dict[str, float]:
    """Root mean square error of each estimate / noise between mini-batches."""
    torch.manual_seed(0)
    backbone = load_backbone(BACKBONE, num_classes=100)
    split = load_splits(data, backbone.preprocessing, seed=0, include=("train",)).train
    assert split is not None
    images = stream(split, backbone.preprocessing)
    model = attach(backbone, "rlrr", {}).train()
    optimiser = new_optimiser(model, lr=lr, weight_decay=0.0)
    watch, seen = Watch(), []
    for number in range(num_steps + NUM_BATCHES):
        if number == num_steps:
            OP._scale_gradients = watch
        batch, labels = next(images)
        F.cross_entropy(logits_of(model(batch)), labels).backward()
        if number < num_steps:
            optimiser.step()
        else:
            seen.append(watch.take())
        optimiser.zero_grad()
    OP._scale_gradients = watch.exactly
    noise = torch.stack([one["exact"] for one in seen]).var(0).sum()
    return {
        name: math.sqrt(
            sum((one[name] - one["exact"]).square().sum() for one in seen) / len(seen) / noise
        )
        for name in watch.ways
    }


def main() -> None:
    """A Markdown table: a line an estimate, a column a number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=CIFAR)
    parser.add_argument("--steps", default="25,250")
    parser.add_argument("--lr", type=float, default=0.03)
    asked = parser.parse_args()
    steps = [int(number) for number in asked.steps.split(",")]
    columns = [errors(asked.data, number, asked.lr) for number in steps]
    print(f"| tokens | {' | '.join(f'after {number} steps' for number in steps)} |")
    print(f"|---|{'---|' * len(steps)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{column[name]:.2f}' for column in columns)} |")


if __name__ == "__main__":
    main()
