"""RLRR: residual-based low-rank rescaling, W' = W ⊙ (1 + S_out S_in), b' = b + f."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.backbones.sites import Site
from vitune.errors import BackboneError, VituneError, nearest
from vitune.methods._roles import LINEAR_ROLES, NORM_ROLES, choose_sites, parts_of
from vitune.methods._scale_shift import scale_shift_class
from vitune.methods._tuner import MethodConfig, MethodLayer, Tensors
from vitune.ops import rescaled_linear, rescaled_weight

INITS = ("paper", "identity", "normal", "uniform", "constant", "zero")


@dataclass
class RLRRConfig(MethodConfig):
    """W' = W ⊙ (1 + S_out S_in), b' = b + f on linears; γ ⊙ y + β after norms and patch embedding.

    Shapes: per linear S_out (o, r), S_in (r, i) for each fused part, f (o,); γ, β (c,).
    Args:
        rank: r; r = 1 is the paper's main method.
        hadamard: False gives the paper's "w/o W", W' = W + S_out S_in.
        sides: "both"; "out" or "in" keeps one vector and drops the other (rank 1 only).
        residual: False drops "W +": W' = W ⊙ (S_out S_in).
        shift: whether linears get f.
        norms: "scale_shift", or None to leave LayerNorms alone.
        patch_embed: whether the patch embedding gets γ, β; None: yes on a plain ViT, no on a
            hierarchical one, as in the paper's code.
        init: what the scales are at step 0.
            "paper": S_in ~ U(±√(6/i)), S_out ~ U(±√6)/√r, γ ~ N(1, .02), β ~ N(0, .02); not the
            identity, ‖ΔW‖/‖W‖ ≈ √(4/i).
            "identity": S_out = 0 and S_in as above: exactly the pre-trained function; S_out has a
            gradient at the first step, S_in from the second.
            "normal", "uniform", "constant": both vectors drawn alike (constant: all equal), with
            the ΔW strength of "paper", γ and β too as in "paper".
            "zero": all scales 0. With sides="both" a stationary point: no scale ever moves, only
            shifts and norms train; refused unless `allow_stationary`.
        fused_qkv: "split" gives q, k, v of a fused qkv their own S_in; "whole" treats it as one
            linear; None: split on a plain ViT, whole on a windowed one, as in the paper.
        allow_stationary: accept init="zero" with both vectors.
        fast: False computes the reference of `vitune.ops` instead of the memory-lean version.

    Raises:
        VituneError: a value outside those named here.
        BackboneError: at injection, where a role asked for is not in the backbone.
    Source: RLRR (CVPR 2024) eq. 5, Table 6 (sides, residual), 10 (init), 11 (w/o W), appendix C
        (rank). Reconstructed where the paper is silent: the 1/√r for r > 1; without the residual
        scales ~ N(1, .02); one-sided scales ~ U(±√(6/i)); w/o W starts at S_out = 0.
    """

    rank: int = field(default=1)
    hadamard: bool = field(default=True)
    sides: str = field(default="both")
    residual: bool = field(default=True)
    shift: bool = field(default=True)
    norms: str | None = field(default="scale_shift")
    patch_embed: bool | None = field(default=None)
    init: str = field(default="paper")
    fused_qkv: str | None = field(default=None)
    allow_stationary: bool = field(default=False)
    fast: bool = field(default=True)

    method = "rlrr"
    title = "RLRR"
    source = "Residual-based Low-Rank Rescaling, CVPR 2024"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, valid in (
            ("sides", ("both", "out", "in")),
            ("norms", ("scale_shift", None)),
            ("init", INITS),
            ("fused_qkv", ("split", "whole", None)),
        ):
            value = getattr(self, name)
            if value not in valid:
                hint = nearest(str(value), [str(choice) for choice in valid])
                raise VituneError(f"{name}: got {value!r}, expected one of {valid}. {hint}")
        if self.rank < 1 or (self.rank > 1 and self.sides != "both"):
            raise VituneError(
                f"rank: got {self.rank!r} with sides={self.sides!r}, expected at least 1, and 1 "
                "where one side is dropped."
            )
        if self.sides != "both" and not self.hadamard:
            raise VituneError("hadamard: got False with one side, expected sides='both'.")
        if self.init == "zero" and self._is_stationary and not self.allow_stationary:
            raise VituneError(
                "init: got 'zero' with both vectors, expected another: no scale would ever get a "
                "gradient. Use init='identity', or allow_stationary=True to see it happen."
            )

    @property
    def _is_stationary(self) -> bool:
        return self.sides == "both" and (self.residual or not self.hadamard)

    @property
    def identity_at_init(self) -> bool:
        return self.init == "identity" or (self.init == "zero" and self.residual)

    def choose(self, sites: Sequence[Site]) -> Sequence[Site]:
        is_plain = not any(site.windowed or site.role == "reduction" for site in sites)
        roles = self.roles or (
            *LINEAR_ROLES,
            "conv",
            *(NORM_ROLES if self.norms else ()),
            *(("patch_embed",) if self._adapts_patches(is_plain) else ()),
        )
        return choose_sites(sites, roles, self.blocks, named=self.roles is not None, by="RLRR")

    def _adapts_patches(self, is_plain: bool) -> bool:
        return is_plain if self.patch_embed is None else self.patch_embed

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        if site.role in (*NORM_ROLES, "patch_embed"):
            return scale_shift_class(site, module, "RLRR")
        if site.separate_bias:
            raise BackboneError(
                f"RLRR at {site.name!r}: got an attention that adds its qkv bias itself, expected "
                "a plain linear. Leave it out: roles=attn_out,fc1,fc2,norm1,norm2."
            )
        if isinstance(module, nn.Linear):
            return RescaledLinear
        if isinstance(module, nn.Conv2d):
            return RescaledConv2d
        raise BackboneError(
            f"RLRR at {site.name!r} ({site.role}): got {type(module).__name__!r}, expected a "
            "Linear or Conv2d. Leave the role out with roles=..."
        )

    def new_scales(self, num_out: int, num_in: int, num_parts: int) -> dict[str, Tensor]:
        """Initial S_out (o, r) and S_in (p, r, i), or the one that `sides` keeps."""
        shapes = {"scale_out": (num_out, self.rank), "scale_in": (num_parts, self.rank, num_in)}
        kept = {
            name: shape
            for name, shape in shapes.items()
            if self.sides == "both" or name == f"scale_{self.sides}"
        }
        return {name: self._new_scale(name, shape, num_in) for name, shape in kept.items()}

    def _new_scale(self, name: str, shape: tuple[int, ...], num_in: int) -> Tensor:
        neutral = 0.0 if self.residual or not self.hadamard else 1 / math.sqrt(self.rank)
        if self.init == "zero":
            return torch.zeros(shape)
        if neutral and self.init in ("paper", "identity"):
            noise = 0.0 if self.init == "identity" else 0.02
            return neutral + noise * torch.randn(shape)
        rms = self._rms(name, num_in)
        starts_at_zero = self.init == "identity" or not self.hadamard
        if starts_at_zero and (name == "scale_out" or self.sides != "both"):
            return torch.zeros(shape)
        if self.init == "normal":
            return neutral + rms * torch.randn(shape)
        if self.init == "constant":
            return torch.full(shape, neutral + rms)
        return neutral + (torch.rand(shape) * 2 - 1) * rms * math.sqrt(3)

    def _rms(self, name: str, num_in: int) -> float:
        """Root mean square of a scale; in every init their product is that of the paper's."""
        of_in = math.sqrt(2 / num_in)
        if self.sides != "both":
            return of_in
        of_out = math.sqrt(2 / self.rank)
        if self.init in ("paper", "identity"):
            return of_out if name == "scale_out" else of_in
        return math.sqrt(of_out * of_in)


class RescaledLinear(MethodLayer):
    """A linear layer under RLRR.

    Shapes: scale_out (o, r); scale_in (p, r, i); shift (o,), o counting the adapted parts only.
    """

    adapter_layer_names = ("scale_out", "scale_in", "shift")
    no_decay = frozenset({"shift"})

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        num_out, num_in = self.get_base_layer().weight.shape
        adapted = len(self._adapted_parts(config))
        out = num_out // self._num_parts(config) * adapted
        values = config.new_scales(out, num_in, adapted)
        return {**values, "shift": torch.zeros(out)} if config.shift else values

    def _num_parts(self, config: RLRRConfig) -> int:
        whole = config.fused_qkv == "whole" or (config.fused_qkv is None and self.site.windowed)
        return 1 if self.site.role != "qkv" or whole else self.site.num_parts

    def _adapted_parts(self, config: RLRRConfig) -> tuple[int, ...]:
        if self._num_parts(config) == 1:
            return (0,)
        return parts_of(self.site, config.roles)

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        weight, bias = tensors["weight"], tensors["bias"]
        assert weight is not None
        weights, biases = [], []
        for rows, scale_out, scale_in, shift in self._slices(adapter, weight):
            part, part_bias = weight[rows], None if bias is None else bias[rows]
            if scale_out is not None and scale_in is not None:
                part = self._changed(part, scale_out, scale_in, adapter)
            if shift is not None:
                part_bias = shift if part_bias is None else part_bias + shift
            weights.append(part)
            biases.append(weight.new_zeros(len(part)) if part_bias is None else part_bias)
        has_bias = bias is not None or self.parameter("shift", adapter) is not None
        return {"weight": torch.cat(weights), "bias": torch.cat(biases) if has_bias else None}

    def _changed(self, part: Tensor, scale_out: Tensor, scale_in: Tensor, adapter: str) -> Tensor:
        config = self.configs[adapter]
        if not config.hadamard:
            change = (scale_out.unflatten(0, (len(scale_in), -1)) @ scale_in).flatten(0, 1)
            return (part + change).to(part.dtype)
        return rescaled_weight(part, scale_out, scale_in, residual=config.residual)

    def _slices(
        self, adapter: str, weight: Tensor
    ) -> list[tuple[slice, Tensor | None, Tensor | None, Tensor | None]]:
        """(outputs, S_out, S_in, f) in order of outputs; None where a part is not adapted."""
        config = self.configs[adapter]
        scale_out, scale_in = self._scales(adapter, weight)
        shift = self.parameter("shift", adapter)
        num_parts, adapted = self._num_parts(config), self._adapted_parts(config)
        if len(adapted) == num_parts:
            return [(slice(0, len(weight)), scale_out, scale_in, shift)]
        size = len(weight) // num_parts
        pieces: list[tuple[slice, Tensor | None, Tensor | None, Tensor | None]] = []
        for part in range(num_parts):
            rows = slice(part * size, (part + 1) * size)
            if part not in adapted:
                pieces.append((rows, None, None, None))
                continue
            at = adapted.index(part)
            mine = slice(at * size, (at + 1) * size)
            pieces.append(
                (
                    rows,
                    scale_out[mine],
                    scale_in[at : at + 1],
                    None if shift is None else shift[mine],
                )
            )
        return pieces

    def _scales(self, adapter: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """S_out and S_in, a dropped one as ones."""
        scale_out = self.parameter("scale_out", adapter)
        scale_in = self.parameter("scale_in", adapter)
        if scale_out is None:
            assert scale_in is not None
            num_out = len(weight) // self._num_parts(self.configs[adapter]) * len(scale_in)
            scale_out = scale_in.new_ones(num_out, 1)
        if scale_in is None:
            parts = len(self._adapted_parts(self.configs[adapter]))
            scale_in = scale_out.new_ones(parts, 1, weight.shape[1])
        return scale_out, scale_in

    def functional(self, x: Tensor, tensors: Tensors) -> Tensor:
        weight, bias = (None if t is None else t.to(x.dtype) for t in tensors.values())
        return F.linear(x, weight, bias)  # type: ignore[arg-type]

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        config, base = self.configs[adapter], self.get_base_layer()
        pieces = self._slices(adapter, base.weight)
        if not (config.fast and config.hadamard) or len(pieces) > 1:
            return super().adapted_forward(x, adapter)
        _, scale_out, scale_in, shift = pieces[0]
        assert scale_out is not None and scale_in is not None
        return rescaled_linear(
            x, base.weight, base.bias, scale_out, scale_in, shift, residual=config.residual
        )


class RescaledConv2d(RescaledLinear):
    """A convolution under RLRR, its weight (O, I/g, k, l) seen as the matrix (O·k, (I/g)·l).

    Shapes: scale_out (O·k, r); scale_in (1, r, (I/g)·l); shift (O,) where the base has a bias.
    Source: RLRR (CVPR 2024) section 4.3, after its ResNet code's permutation; no shift without
        a base bias, so that BatchNorm stays the only offset. Grouped convolutions are vitune's.
    """

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        base = self.get_base_layer()
        matrix = _as_matrix(base.weight)
        values = config.new_scales(len(matrix), matrix.shape[1], 1)
        has_shift = config.shift and base.bias is not None
        return {**values, "shift": torch.zeros(base.out_channels)} if has_shift else values

    def adapt(self, tensors: Tensors, adapter: str) -> Tensors:
        weight, bias, shift = tensors["weight"], tensors["bias"], self.parameter("shift", adapter)
        assert weight is not None
        matrix = _as_matrix(weight)
        changed = self._changed(matrix, *self._scales(adapter, matrix), adapter)
        out, in_channels, height, width = weight.shape
        folded = changed.view(out, height, in_channels, width).permute(0, 2, 1, 3)
        return {"weight": folded, "bias": bias if bias is None or shift is None else bias + shift}

    def functional(self, x: Tensor, tensors: Tensors) -> Tensor:
        weight, bias = (None if t is None else t.to(x.dtype) for t in tensors.values())
        return self.get_base_layer()._conv_forward(x, weight, bias)

    def adapted_forward(self, x: Tensor, adapter: str) -> Tensor:
        return self.functional(x, self.adapt(self.base_tensors(), adapter))


def _as_matrix(weight: Tensor) -> Tensor:
    out, in_channels, height, width = weight.shape
    return weight.permute(0, 2, 1, 3).reshape(out * height, in_channels * width)
