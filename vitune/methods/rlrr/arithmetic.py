"""Arithmetic of trained RLRR adapters: one adapter that acts like a weighted sum of several."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vitune.methods.authoring import (
    PREFIX,
    AdapterError,
    AdapterState,
    check_choice,
    check_weights,
    expand_roles,
    listed,
    require_combining,
)
from vitune.methods.rlrr.init import neutral_scale

HOWS = ("compose", "sum")
HEADS = ("auto", "mix", "first")
SCALES = ("scale_out", "scale_in")
PARAMETERS = (*SCALES, "shift", "scale")
MUST_AGREE = ("hadamard", "sides", "residual", "shift", "norms", "patch_embed", "fused_qkv")
WEIGHT_SUM_TOLERANCE = 1e-6
ROUNDING = 1e-9


def combine_states(
    states: Sequence[AdapterState],
    weights: Sequence[float],
    how: str = "compose",
    head: str = "auto",
) -> AdapterState:
    """One adapter for Σ w_i · adapter_i; a weight w_i < 0 subtracts a task.

    "compose" keeps the rank: S_out = Σ w_i S_out_i, S_in = Σ w_i S_in_i, then their product.
    "sum" concatenates the ranks, so that W' − W = Σ w_i (W'_i − W) exactly. In both f = Σ w_i f_i,
    γ = 1 + Σ w_i (γ_i − 1), β = Σ w_i β_i. One-sided scales are combined linearly, which is exact.

    Args:
        states: adapters of one backbone, trained under one RLRR variant; whether the backbones'
            weights agree cannot be seen here (compare fingerprints).
        weights: one finite number per adapter.
        how: "compose" or "sum".
        head: how to combine the classifiers. "mix": Σ w_i of its weights, the weights summing to 1
            (an affine mean keeps the scale of the logits). "first": the first adapter's. "auto":
            "mix" if possible, else "first" with a warning.

    Raises:
        AdapterError: adapters that differ in variant, roles, sites, shapes or (for "compose")
            rank, all differences listed; weights that do not fit; a head that cannot be mixed.
        VituneError: another `how` or `head`.
    Source: RLRR (CVPR 2024) appendix H. Deviations: the points that appendix H leaves open, the
        norm parts and the head; without the residual S means its deviation from S_out S_in = 1.
    """
    check_choice("how", how, HOWS)
    check_choice("head", head, HEADS)
    check_weights(states, weights)
    states = [_of_today(state) for state in states]
    _check_alike(states, how)
    config: Any = states[0].config
    concatenates = how == "sum" and config.sides == "both"
    missing = 1 - sum(weights) if concatenates and not config.residual else 0.0
    missing = 0.0 if abs(missing) < ROUNDING else missing
    tensors = {}
    for name, first in _of_method(states[0]).items():
        values, part = [state.tensors[name] for state in states], _part(name)
        if part in SCALES and concatenates:
            tensors[name] = _concatenated(values, weights, part, missing)
        else:
            tensors[name] = _weighted(values, weights, _neutral(config, part, first))
    rank = config.rank
    if concatenates:
        rank = sum(state.config.rank for state in states) + bool(missing)
    changed = dataclasses.replace(config, rank=rank, init="identity", allow_stationary=False)
    return AdapterState(changed, {**tensors, **_combined_head(states, weights, head)})


def _neutral(config: Any, part: str, like: Tensor) -> Tensor:
    """The value of a parameter that changes nothing."""
    if part in SCALES:
        return neutral_scale(config, like)
    return torch.ones_like(like) if part == "scale" else torch.zeros_like(like)


def _weighted(values: Sequence[Tensor], weights: Sequence[float], neutral: Tensor) -> Tensor:
    """neutral + Σ w_i (value_i − neutral)."""
    pairs = zip(values, weights, strict=True)
    return sum((weight * (value - neutral) for value, weight in pairs), neutral)


def _concatenated(
    values: Sequence[Tensor], weights: Sequence[float], part: str, missing: float
) -> Tensor:
    """All components concatenated, with the weights in S_out.

    Without the residual Σ w_i S_out_i S_in_i stands for Σ w_i only; one more component, constant,
    gives the `missing` rest to 1.
    """
    parts = list(values)
    if part == "scale_out":
        parts = [weight * value for value, weight in zip(values, weights, strict=True)]
    if missing:
        parts.append(torch.full_like(values[0][:, :1], missing if part == "scale_out" else 1.0))
    return torch.cat(parts, dim=1)


def _combined_head(
    states: Sequence[AdapterState], weights: Sequence[float], head: str
) -> dict[str, Tensor]:
    """The modules trained whole: averaged, or the first adapter's."""
    heads = [_outside_method(state) for state in states]
    shapes = [{name: tuple(value.shape) for name, value in each.items()} for each in heads]
    obstacle = None
    if any(shape != shapes[0] for shape in shapes):
        obstacle = f"heads of shapes {shapes!r}"
    elif abs(sum(weights) - 1) > WEIGHT_SUM_TOLERANCE:
        obstacle = f"weights that sum to {sum(weights):g}"
    if head == "mix" and obstacle:
        raise AdapterError(
            f"head: got 'mix' with {obstacle}, expected equal shapes and weights that sum to 1. "
            "Use head='first'."
        )
    if not heads[0] or head == "first":
        return heads[0]
    if obstacle:
        warnings.warn(
            f"The classifier is the first adapter's, not an average: {obstacle}.", stacklevel=3
        )
        return heads[0]
    return {
        name: _weighted([each[name] for each in heads], weights, torch.zeros_like(first))
        for name, first in heads[0].items()
    }


def _check_alike(states: Sequence[AdapterState], how: str) -> None:
    differences = list(_differences(states, how))
    if differences:
        raise AdapterError(
            f"combine: got adapters that differ in {'; '.join(differences)}; expected one method, "
            "variant and set of layers. Adapters trained with one configuration on one backbone "
            "can be combined."
        )


def _differences(states: Sequence[AdapterState], how: str) -> Iterator[str]:
    """All differences between the adapters that prevent combining them."""
    methods = [state.config.peft_type.value for state in states]
    if len(set(methods)) > 1:
        yield f"method {methods}"
        return
    require_combining(states)
    configs: list[Any] = [state.config for state in states]
    for name in MUST_AGREE if how == "sum" else (*MUST_AGREE, "rank"):
        values = [getattr(config, name) for config in configs]
        if any(value != values[0] for value in values):
            yield f"{name} {values}"
    roles = [sorted(expand_roles(config.roles)) if config.roles else None for config in configs]
    if any(value != roles[0] for value in roles):
        yield f"roles {roles}"
    tensors = [_of_method(state) for state in states]
    sites = [{name.rpartition(".")[0] for name in each} for each in tensors]
    for number, present in enumerate(sites, start=1):
        absent = set().union(*sites) - present
        if absent:
            yield f"layers that adapter {number} lacks ({listed(sorted(absent), 6)})"
    common = set(tensors[0]).intersection(*tensors)
    odd = {name for name in common if len({_shape(name, each[name]) for each in tensors}) > 1}
    if odd:
        shown = [f"{name} {[_shape(name, each[name]) for each in tensors]}" for name in sorted(odd)]
        yield f"shapes ({listed(shown, 6)})"


def _shape(name: str, value: Tensor) -> tuple[int, ...]:
    """Shape without the rank."""
    shape = tuple(value.shape)
    return shape[:1] + shape[2:] if _part(name) in SCALES else shape


def _part(name: str) -> str:
    """The layer parameter that a tensor belongs to."""
    return name.rpartition(".")[2].removeprefix(PREFIX)


def _of_today(state: AdapterState) -> AdapterState:
    """The state under current names: files of vitune 0.1 had no PREFIX."""
    tensors = {}
    for name, value in state.tensors.items():
        owner, _, leaf = name.rpartition(".")
        tensors[f"{owner}.{PREFIX}{leaf}" if leaf in PARAMETERS else name] = value
    return AdapterState(state.config, tensors)


def _of_method(state: AdapterState) -> dict[str, Tensor]:
    """The tensors that RLRR's layers hold."""
    return {name: value for name, value in state.tensors.items() if _part(name) in PARAMETERS}


def _outside_method(state: AdapterState) -> dict[str, Tensor]:
    """The tensors of modules trained whole."""
    own = _of_method(state)
    return {name: value for name, value in state.tensors.items() if name not in own}
