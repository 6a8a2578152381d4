"""What a client of a federation sends, and what it can do to that first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitune.backbones import logits_of
from vitune.errors import VituneError


@dataclass(frozen=True)
class Defence:
    """What is done to an update before it leaves the client, in this order.

    Args:
        clip: the norm of the whole update is at most this.
        noise: standard deviation of Gaussian noise, in units of `clip`.
        keep: share of the entries that are sent, the largest ones; the others are 0.
        bits: every tensor is rounded to 2^bits - 1 even steps between its extremes.

    Raises:
        VituneError: a value out of range, or noise without a clip.
    """

    clip: float | None = None
    noise: float = 0.0
    keep: float = 1.0
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise VituneError(f"--clip: got {self.clip!r}, expected a norm above 0.")
        if not 0 <= self.noise < math.inf or (self.noise and self.clip is None):
            raise VituneError(
                f"--noise: got {self.noise!r}, expected a number from 0, in units of --clip. "
                "Give --clip too."
            )
        if not 0 < self.keep <= 1:
            raise VituneError(f"--keep: got {self.keep!r}, expected a share above 0, at most 1.")
        if self.bits is not None and not 1 <= self.bits <= 16:
            raise VituneError(f"--bits: got {self.bits!r}, expected 1 to 16.")

    def __call__(self, update: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
        """The update as it is sent; the one given stays as it is."""
        sent = {name: value.clone() for name, value in update.items()}
        if self.clip is not None:
            norm = torch.sqrt(sum((v.double() ** 2).sum() for v in sent.values()))  # type: ignore[arg-type]
            factor = min(1.0, self.clip / max(float(norm), 1e-300))
            generator = torch.Generator().manual_seed(seed)
            for name, value in sent.items():
                noise = torch.randn(value.shape, generator=generator)
                sent[name] = value * factor + self.noise * self.clip * noise
        if self.keep < 1:
            sizes = torch.cat([value.abs().flatten() for value in sent.values()])
            num_left_out = min(round((1 - self.keep) * len(sizes)), len(sizes) - 1)
            least = sizes.kthvalue(max(1, num_left_out)).values
            sent = {name: v.where(v.abs() > least, 0.0) for name, v in sent.items()}
        if self.bits is not None:
            sent = {name: _rounded(value, 2**self.bits - 1) for name, value in sent.items()}
        return sent


def _rounded(value: Tensor, steps: int) -> Tensor:
    low = value.min()
    step = (value.max() - low) / steps
    if step == 0:  # all entries alike: zeros below a head of zeros, say
        return value
    return ((value - low) / step).round() * step + low


def trained(model: PeftModel) -> dict[str, nn.Parameter]:
    """The parameters that a client trains and sends, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def gradient(
    model: PeftModel, images: Tensor, labels: Tensor, *, create_graph: bool = False
) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy in every trained parameter.

    Args:
        create_graph: the result can be differentiated; it is then exact, too, where a faster step
            would round a product.

    Shapes: images (b, 3, h, w) normalised; labels (b,), or shares (b, c).
    """
    parameters = trained(model)
    # Fused attention has no second derivative on a CPU.
    with sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext():
        loss = F.cross_entropy(logits_of(model(images)), labels)
        found = torch.autograd.grad(
            loss, list(parameters.values()), create_graph=create_graph, allow_unused=True
        )
    return {
        name: torch.zeros_like(parameter) if value is None else value
        for (name, parameter), value in zip(parameters.items(), found, strict=True)
    }


def local_update(
    model: PeftModel, images: Tensor, labels: Tensor, *, steps: int = 1, lr: float = 1e-2
) -> dict[str, Tensor]:
    """What `steps` steps of plain SGD on one batch change, divided by -lr · steps.

    With one step this is the gradient. The model is as before afterwards.

    Raises:
        VituneError: the steps lead to NaN or infinity.
    """
    if steps == 1:
        found = gradient(model, images, labels, create_graph=True)
        return {name: value.detach() for name, value in found.items()}
    parameters = trained(model)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    with torch.no_grad():
        for _ in range(steps):
            with torch.enable_grad():
                slope = gradient(model, images, labels, create_graph=True)
            for name, value in parameters.items():
                value.sub_(lr * slope[name].detach())
        found = {n: (before[n] - v) / (lr * steps) for n, v in parameters.items()}
        for name, value in parameters.items():
            value.copy_(before[name])
    if not all(value.isfinite().all() for value in found.values()):
        raise VituneError(
            f"--lr: got {lr:g}, with which {steps} local steps lead to NaN or infinity, expected "
            "less. Lower it."
        )
    return found
