"""How well recovered images agree with the originals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as lpips
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure as ms_ssim,
)
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

RECOVERED_DB = 25.0
"""A patch counts as recovered from this PSNR."""
SCALES = (0.3, 0.3, 0.4)
"""MS-SSIM's weights for small images: three scales instead of five."""
LEAST_SIDE = 32
"""Pixels per side that MS-SSIM and LPIPS need."""
Net = Literal["alex", "vgg", "squeeze"]
LPIPS_NETS: dict[Net, str] = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""Networks that LPIPS may look through, the usual one first, and torchvision's file of each."""


@dataclass(frozen=True)
class Agreement:
    """What recoveries of one batch are worth; means over the originals.

    Args:
        mse: of pixels in [0, 1]; psnr is the mean over images, in dB.
        ms_ssim: None for images under 32 pixels.
        lpips: None for these, too, and where no network for it is stored (`lpips_net`).
        found: share of recoveries that are nearer to their original than to any other image of
            the pool (the batch and decoys), in pixels.
        found_by_features: the same in the backbone's features.
        patches: share of the originals' patches that were recovered.
    """

    mse: float
    psnr: float
    ssim: float
    ms_ssim: float | None
    found: float
    found_by_features: float
    patches: float
    lpips: float | None = None


def lpips_net() -> Net | None:
    """The network for LPIPS whose weights torchvision has stored on this machine, if any."""
    stored = Path(torch.hub.get_dir()) / "checkpoints"
    return next((net for net, file in LPIPS_NETS.items() if (stored / file).is_file()), None)


def matched(originals: Tensor, recovered: Tensor) -> Tensor:
    """`recovered` in the order of `originals`, such that the squared error is least.

    Originals left over get the mean of all that was recovered, or grey where there is nothing.
    """
    if len(recovered) == 0:
        return torch.full_like(originals, 0.5)
    costs = ((originals[:, None] - recovered[None]) ** 2).mean((2, 3, 4))
    lines, columns = linear_sum_assignment(costs.numpy())
    found = recovered.mean(0).expand_as(originals).clone()
    found[torch.as_tensor(lines)] = recovered[torch.as_tensor(columns)]
    return found


def agreement(
    originals: Tensor,
    recovered: Tensor,
    decoys: Tensor,
    pool_features: Tensor,
    features: Tensor,
    patch: int,
) -> Agreement:
    """Compare images one to one.

    Args:
        originals, recovered: in the same order.
        decoys: other images of the same kind that a recovery must not be nearest to.
        pool_features: the backbone's, of originals and decoys.
        features: of the recovered images.
        patch: pixels per side.

    Shapes: images (b, 3, h, w) in [0, 1].
    """
    errors = ((originals - recovered) ** 2).mean((1, 2, 3)).clamp_min(1e-10)
    pool = torch.cat([originals, decoys])
    window = {"kernel_size": 7, "sigma": 1.0, "data_range": 1.0}
    multi: float | None = None
    perceptual: float | None = None
    if min(originals.shape[-2:]) >= LEAST_SIDE:
        multi = float(ms_ssim(recovered, originals, betas=SCALES, normalize="relu", **window))
        if (net := lpips_net()) is not None:
            perceptual = float(lpips(recovered, originals, net_type=net, normalize=True))
    return Agreement(
        mse=float(errors.mean()),
        psnr=float(-10 * errors.log10().mean()),
        ssim=float(ssim(recovered, originals, **window)),
        ms_ssim=multi,
        found=_identified(recovered.flatten(1), pool.flatten(1)),
        found_by_features=_identified(features, pool_features),
        patches=float(recovered_patches(originals, recovered, patch).float().mean()),
        lpips=perceptual,
    )


def recovered_patches(originals: Tensor, recovered: Tensor, patch: int) -> Tensor:
    """Which patches were recovered, (b, patches)."""
    squared = ((originals - recovered) ** 2).mean(1, keepdim=True)
    errors = torch.nn.functional.avg_pool2d(squared, patch).flatten(1)
    return errors < 10 ** (-RECOVERED_DB / 10)


def _identified(found: Tensor, pool: Tensor) -> float:
    """Share of lines of `found` whose nearest line of `pool` is their own."""
    nearest = torch.cdist(found.double(), pool.double()).argmin(1)
    return float((nearest == torch.arange(len(found))).double().mean())
