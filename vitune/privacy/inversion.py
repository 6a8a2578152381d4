"""Gradient inversion against an honest backbone: labels off the head, images by matching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from vitune.privacy.malicious import head_gradient
from vitune.privacy.shared_update import gradient

VANISHED = 1e-12
"""A gradient whose norm is a smaller share of the whole's says nothing (below a head of zeros)."""


@dataclass(frozen=True)
class MatchSettings:
    """How images are looked for.

    Args:
        iterations: steps of Adam.
        lr: of these steps, in units of the normalised pixels; divided by 10 at 3/8, 5/8 and 7/8.
        smoothness: weight of the total variation.
        knows_labels: the attacker is told them; otherwise it takes those read off the head.
    """

    iterations: int = 300
    lr: float = 0.1
    smoothness: float = 1.0
    knows_labels: bool = True


def labels_from_head(model: PeftModel, update: dict[str, Tensor], batch: int) -> Tensor:
    """How often each class is in the batch, from the gradient of the classifier's bias.

    With a head of zeros db_c = 1/C - n_c/B gives the counts exactly; otherwise the predicted
    shares are taken to be even, and the counts are rounded so that they add up to B.

    Shapes: returns (b,), sorted.
    """
    _, bias = head_gradient(model, update)
    expected = ((1 / len(bias) - bias) * batch).clamp_min(0)
    counts = expected.floor()
    for _ in range(batch - int(counts.sum())):
        counts[(expected - counts).argmax()] += 1
    return torch.repeat_interleave(torch.arange(len(bias)), counts.long())[:batch]


def match_gradient(
    model: PeftModel,
    update: dict[str, Tensor],
    labels: Tensor,
    image_shape: tuple[int, int, int],
    settings: MatchSettings,
    *,
    limits: tuple[float, float] = (-1.0, 1.0),
    seed: int = 0,
    on_step: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """Images whose gradient has the direction of `update`: min 1 - cos + w·TV over pixels.

    Args:
        update: what the client sent.
        limits: of normalised pixels.

    Shapes: labels (b,); returns (b, 3, h, w) in normalised pixels.
    Source: Geiping et al. (NeurIPS 2020), with their signed Adam steps.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(len(labels), *image_shape, generator=generator).mul_(0.3)
    images.requires_grad_()
    optimiser = torch.optim.Adam([images], lr=settings.lr)
    marks = [round(settings.iterations * share) for share in (3 / 8, 5 / 8, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, marks, gamma=0.1)
    sizes = {name: float((value.double() ** 2).sum()) for name, value in update.items()}
    used = [name for name, size in sizes.items() if size > VANISHED**2 * sum(sizes.values())]
    target = torch.cat([update[name].flatten() for name in used])
    target = target / target.abs().max()  # the norm of a tiny one would be 0
    target = target / target.norm()
    for step in range(settings.iterations):
        optimiser.zero_grad()
        found = gradient(model, images, labels, create_graph=True)
        own = torch.cat([found[name].flatten() for name in used])
        distance = 1 - own @ target / own.norm().clamp_min(1e-30)
        (distance + settings.smoothness * _total_variation(images)).backward()
        images.grad.sign_()  # type: ignore[union-attr]
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            images.clamp_(*limits)
        on_step(step)
    return images.detach()


def _total_variation(images: Tensor) -> Tensor:
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return across + down
