"""The learning rate of a run that was given none: a rule, not a number per backbone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from vitune.backbones import BUNDLED, find_sites
from vitune.methods import CAUTIOUS, get_method
from vitune.training.probing import Probe
from vitune.training.train_config import TrainConfig

REFERENCE_STEPS, REFERENCE_BATCH = 300, 32
REFERENCE_WIDTH, REFERENCE_DEPTH = 768, 12
"""A ViT-B trained for 10 epochs on 1,000 images: a method's own rate applies there unchanged."""

MOST_FOR_SIZE = 12.0
"""Smallness (see `Shape`) up to which the rate rises: 128 wide and 6 deep. At half that width the
higher rate made LoRA stop learning (docs/defaults-log.md)."""

SAME_FROM_ZERO = 6.0
"""Smallness of the largest network, 256 wide and 6 deep, on which the bundled backbone's rates
for a start from zero were found to hold."""

FEWEST_STEPS = 100
"""Below this many steps a higher rate does not make up for them, and training starts at the probe
whatever the features: from zero it seldom gets beyond it (docs/defaults-log.md)."""

DEMAND_REFERENCE = 50.0
"""Summed penalty (λ times images) of a probe from which on the features suit the task."""

MOST_DEMAND, MOST_DEMAND_WHEN_SHORT = 10.0, 2.0
"""The largest factor by which the rate rises if the features fall short; in fewer than
`FEWEST_STEPS` a probe that was broken by a high rate does not recover."""

FALLS_SHORT = 40.0
"""Summed penalty of the probe below which training does not start at the probe: halfway, as a
ratio, between drawn images (24 at most) and photographs (80 and more)."""

HEAD_FACTOR = 0.1
"""The classifier's rate relative to the adapter's when it starts at the solved probe."""


@dataclass(frozen=True)
class Shape:
    """The inputs of the rule for one run.

    Args:
        width: features of a token.
        depth: blocks.
        steps: optimiser steps in all.
        batch: images per optimiser step, over all processes.
    """

    width: int
    depth: int
    steps: int
    batch: int

    @property
    def smallness(self) -> float:
        """(768 / width) · (12 / depth): 1 for a ViT-B, 12 for the bundled backbone."""
        return (REFERENCE_WIDTH / max(1, self.width)) * (REFERENCE_DEPTH / max(1, self.depth))


def rate_of(usual: float, shape: Shape) -> float:
    """usual · √(768 / width) · √(12 / depth) · √(batch / 32) · √(300 / max(steps, 100)).

    Each step of AdamW moves a parameter by about the rate: over n steps of noise that is a random
        walk of length rate · √n, which the rule keeps constant. The square roots of width and depth
        keep the change of the network's function constant; their product is √12 at most.

    Args:
        usual: the method's rate on a ViT-B in 300 steps of 32 images.

    Source: the square root in the batch is that of Malladi et al., On the SDEs and scaling rules
        for adaptive gradient algorithms (NeurIPS 2022); the others are vitune's own;
        docs/defaults-log.md says what they were tested on.
    """
    factor = (
        min(MOST_FOR_SIZE, shape.smallness)
        * (shape.batch / REFERENCE_BATCH)
        * (REFERENCE_STEPS / max(FEWEST_STEPS, shape.steps))
    )
    return float(f"{usual * math.sqrt(factor):.2g}")


def demand_of(penalty: float | None, num_images: int, most: float = MOST_DEMAND) -> float:
    """min(most, max(1, 50 / (λ · n))): how far features fall short, estimated from the probe's
    penalty.

    A weak best penalty means that the probe squeezes what it can out of features that were not made
    for the task; the blocks then have much to learn, and a high rate pays off. If a strong penalty
    is best (photographs on a network that saw photographs), a high rate only overfits.

    Args:
        penalty: λ, the strongest within one standard error of the best; None if unknown.
        num_images: n, the number of images the probe was solved on.
    """
    if penalty is None:
        return 1.0
    return min(most, max(1.0, DEMAND_REFERENCE / (penalty * max(1, num_images))))


def falls_short(penalty: float | None, num_images: int) -> bool:
    """Whether λ · n < 40: features were not made for the task, and a probe is a poor start.

    A head that relies heavily on such features breaks at the first steps that change them, and it
    holds the blocks back; from zero, at a high rate, head and blocks adapt to each other.

    Args:
        penalty: λ, the strongest within one standard error of the best; None if unknown.
        num_images: n, the number of images the probe was solved on.
    """
    return penalty is not None and penalty * num_images < FALLS_SHORT


def plain_rate(usual: float, steps: int) -> float:
    """The rate of a start from zero: the method's own, times √(300 / steps) in longer runs."""
    return float(f"{usual * min(1.0, math.sqrt(REFERENCE_STEPS / max(1, steps))):.2g}")


def shape_of(model: nn.Module, steps: int, batch: int) -> Shape:
    """Width and depth of a backbone, adapted or not, read from its sites."""
    sites = [site for site in find_sites(model) if site.block is not None]
    depth = len({site.block for site in sites})
    inputs = [
        getattr(model.get_submodule(site.name), "in_features", None)
        for site in sites
        if site.role in ("fc1", "q", "qkv")
    ]
    widths = [width for width in inputs if isinstance(width, int)]
    return Shape(max(widths, default=REFERENCE_WIDTH), depth or REFERENCE_DEPTH, steps, batch)


def rate_by_rule(
    config: TrainConfig, model: nn.Module, num_images: int, num_processes: int, probe: Probe
) -> float:
    """The peak rate of a run that starts at `probe`, by vitune's rule."""
    is_short = has_few_steps(config, num_images, num_processes)
    most = MOST_DEMAND_WHEN_SHORT if is_short else MOST_DEMAND
    demand = demand_of(probe.head.chosen.get(CAUTIOUS), num_images, most)
    return float(f"{_scaled(config, model, num_images, num_processes) * demand:.2g}")


def rate_from_zero(
    config: TrainConfig, model: nn.Module, num_images: int, num_processes: int, probe: Probe | None
) -> float:
    """The peak rate of a run that does not start at a probe.

    It is the one recorded for the method on this backbone, in longer runs scaled by `plain_rate`.
    Another backbone takes the rate recorded on the bundled one: it was found to hold from 64 to
    256 features, and larger networks get less, by the square root of width and depth. A method
    without any record takes the rule's rate, times the square root of how far the features fall
    short. Without a probe that is unknown, and the method's usual rate is used.
    """
    method, steps = get_method(config.method), num_steps(config, num_images, num_processes)
    if probe is None or method.has_recorded_lr(config.backbone):
        return plain_rate(method.default_lr(config.backbone), steps)
    if method.has_recorded_lr(BUNDLED):
        smallness = shape_of(model, steps, config.batch_size).smallness
        factor = math.sqrt(min(1.0, smallness / SAME_FROM_ZERO))
        return plain_rate(method.default_lr(BUNDLED) * factor, steps)
    demand = demand_of(probe.head.chosen.get(CAUTIOUS), num_images)
    scaled = _scaled(config, model, num_images, num_processes)
    return float(f"{scaled * math.sqrt(demand):.2g}")


def _scaled(config: TrainConfig, model: nn.Module, num_images: int, num_processes: int) -> float:
    """The method's usual rate, scaled to this run."""
    steps = num_steps(config, num_images, num_processes)
    images = config.batch_size * num_processes * config.accumulation_steps
    return rate_of(get_method(config.method).usual_lr, shape_of(model, steps, images))


def num_steps(config: TrainConfig, num_images: int, num_processes: int) -> int:
    """Optimiser steps of the whole run."""
    batches = num_images / (config.batch_size * num_processes)
    whole = math.floor(batches) if config.drop_last else math.ceil(batches)
    return math.ceil(whole / config.accumulation_steps) * config.epochs


def has_few_steps(config: TrainConfig, num_images: int, num_processes: int) -> bool:
    """Whether the whole run is shorter than `FEWEST_STEPS`."""
    return num_steps(config, num_images, num_processes) < FEWEST_STEPS
