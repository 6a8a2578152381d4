"""The initial values of RLRR's scales."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

INITS = ("paper", "identity", "normal", "uniform", "constant", "zero")
PAPER_STD = 0.02


class ScaleOptions(Protocol):
    """The part of `RLRRConfig` that the initial scales depend on."""

    rank: int
    sides: str
    residual: bool
    hadamard: bool
    init: str


def new_scales(
    options: ScaleOptions, num_out: int, num_in: int, num_parts: int
) -> dict[str, Tensor]:
    """Initial scales by name, drawn as `RLRRConfig` documents for `init`.

    Shapes: scale_out (o, r); scale_in (p, r, i); the one that `sides` drops is left out.
    """
    shapes = {"scale_out": (num_out, options.rank), "scale_in": (num_parts, options.rank, num_in)}
    kept = [name for name in shapes if options.sides in ("both", name.removeprefix("scale_"))]
    return {name: _new_scale(options, name, shapes[name], num_in) for name in kept}


def neutral_scale(options: ScaleOptions, like: Tensor) -> Tensor:
    """The scale shaped as `like`, S_out or S_in, that leaves W as it is.

    With the residual that is 0; without it the first of the r components is 1.
    """
    neutral = torch.zeros_like(like)
    if not options.residual:
        neutral[:, 0] = 1
    return neutral


def _new_scale(options: ScaleOptions, name: str, shape: tuple[int, ...], num_in: int) -> Tensor:
    scale = torch.zeros(shape)
    if not _starts_at_zero(options, name):
        scale = _draw(options.init, shape, _root_mean_square(options, name, num_in))
    if not options.residual and options.init != "zero":
        scale[:, 0] = 1 + _noise_around_one(options.init, scale[:, 0].shape, num_in)
    return scale


def _starts_at_zero(options: ScaleOptions, name: str) -> bool:
    """Whether this side starts at 0, so that the product is 0 and the other side may be drawn."""
    if options.init == "zero":
        return True
    needs_zero = options.init == "identity" or not options.hadamard
    return needs_zero and (name == "scale_out" or options.sides != "both")


def _root_mean_square(options: ScaleOptions, name: str, num_in: int) -> float:
    """Strength of one side; with two sides, that of the product over r components is 2/√i."""
    of_in, of_out = math.sqrt(2 / num_in), math.sqrt(2 / options.rank)
    if options.sides != "both" or not options.hadamard:
        return of_in
    if options.init in ("paper", "identity"):
        return of_out if name == "scale_out" else of_in
    return math.sqrt(of_out * of_in)


def _noise_around_one(init: str, shape: tuple[int, ...], num_in: int) -> Tensor:
    if init == "identity":
        return torch.zeros(shape)
    if init == "paper":
        return PAPER_STD * torch.randn(shape)
    return _draw(init, shape, math.sqrt(2 / num_in))


def _draw(init: str, shape: tuple[int, ...], root_mean_square: float) -> Tensor:
    if init == "normal":
        return root_mean_square * torch.randn(shape)
    if init == "constant":
        return torch.full(shape, root_mean_square)
    return (torch.rand(shape) * 2 - 1) * root_mean_square * math.sqrt(3)
