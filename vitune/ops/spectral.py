"""Filters of three diffusion-like equations on the patch grid, through the cosine transform."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vitune.errors import BackboneError

PRIORS = ("heat", "wave", "poisson")
TAU_INIT = ((0.05, 0.01), (0.05, 0.01), (0.5, 0.1))
"""Mean and standard deviation of τ for each prior."""


def cosine_basis(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The orthonormal DCT-II matrix C (size, size): C x are the coefficients, Cᵀ the inverse."""
    index = torch.arange(size, device=device, dtype=dtype)
    basis = torch.cos(math.pi / size * (index + 0.5) * index[:, None])
    basis = basis * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def squared_frequencies(grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """ω²[n, m] = (π n / H)² + (π m / W)², (H, W)."""
    along = [
        (math.pi / size * torch.arange(size, device=device, dtype=dtype)).square() for size in grid
    ]
    return along[0][:, None] + along[1]


def response(
    rates: Tensor, tau: Tensor, route: Tensor, temperature: Tensor, grid: tuple[int, int]
) -> Tensor:
    """R = π₀ exp(−ω² t₀) + π₁ cos(ω² t₁) + π₂ t₂ with t_p = relu(k_p τ_p), π = softmax(a / T).

    Shapes: rates k (3, H, W, g) or (3, H, W, 1); tau (3, g, c) or (3, 1, c); route a (3, g);
        temperature T (g,); returns (H, W, g, c), c channels in each of g groups.
    """
    times = F.relu(rates.unsqueeze(-1) * tau[:, None, None])  # (3, H, W, g, c)
    omega = squared_frequencies(grid, times.device, times.dtype)[..., None, None]
    share = torch.softmax(route / temperature, dim=0)[..., None]  # (3, g, 1)
    heat, wave = torch.exp(-omega * times[0]), torch.cos(omega * times[1])
    return share[0] * heat + share[1] * wave + share[2] * times[2]


def filtered(tokens: Tensor, gain: Tensor, num_prefix: int) -> Tensor:
    """IDCT(R ⊙ DCT(X)) of the patch tokens; the prefix tokens pass unchanged.

    Shapes: tokens (b, n, d) with n = num_prefix + H·W; gain R (H, W, d); returns (b, n, d).
    Raises:
        BackboneError: the tokens are not prefix and grid.
    """
    height, width = gain.shape[:2]
    if tokens.dim() != 3 or tokens.shape[1] != num_prefix + height * width:
        raise BackboneError(
            f"spectral filter: got tokens {tuple(tokens.shape)}, expected {num_prefix} prefix "
            f"tokens and {height} x {width} patches. Use the image size of training."
        )
    exact = torch.promote_types(tokens.dtype, torch.float32)
    prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
    image = patches.to(exact).unflatten(1, (height, width))  # (b, H, W, d)
    down = cosine_basis(height, tokens.device, exact)
    across = cosine_basis(width, tokens.device, exact)
    # One axis after the other: of three factors at once, einsum's order depends on opt_einsum.
    spectrum = torch.einsum("nh,bhwd->bnwd", down, image)
    spectrum = torch.einsum("mw,bnwd->bnmd", across, spectrum) * gain
    image = torch.einsum("mw,bnmd->bnwd", across, spectrum)
    image = torch.einsum("nh,bnwd->bhwd", down, image)
    return torch.cat([prefix, image.flatten(1, 2).to(tokens.dtype)], dim=1)


def route_entropy(route: Tensor, temperature: Tensor) -> Tensor:
    """mean(−π log π) over priors and groups, π = softmax(a / T)."""
    log_share = torch.log_softmax(route / temperature, dim=0)
    return -(log_share.exp() * log_share).mean()


def new_tau(*shape: int) -> Tensor:
    """τ (3, *shape), each prior from its own normal distribution."""
    return torch.stack([torch.randn(shape) * std + mean for mean, std in TAU_INIT])
