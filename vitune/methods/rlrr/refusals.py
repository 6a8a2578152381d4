"""Checks of `RLRRConfig`: unknown values, and options that contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vitune.methods.authoring import (
    NORM_ROLES,
    QKV_PARTS,
    VituneError,
    check_choice,
    check_rank,
    check_share,
    expand_roles,
)
from vitune.methods.rlrr.init import INITS

SWITCHES = ("hadamard", "residual", "shift", "allow_stationary", "fast", "exact")


class Options(Protocol):
    """The fields of `RLRRConfig` that are checked here."""

    rank: int
    sides: str
    init: str
    hadamard: bool
    residual: bool
    fast: bool
    allow_stationary: bool
    token_share: float
    norms: str | None
    fused_qkv: str | None
    patch_embed: bool | None
    roles: Sequence[str] | None


def check_values(config: Options) -> None:
    """Refuse a value out of range.

    Raises:
        VituneError: there is one.
    """
    check_rank(config.rank)
    check_share("token_share", config.token_share)
    check_choice("sides", config.sides, ("both", "out", "in"))
    check_choice("init", config.init, INITS)
    if config.norms is not None:
        check_choice("norms", config.norms, ("scale_shift",))
    if config.fused_qkv is not None:
        check_choice("fused_qkv", config.fused_qkv, ("split", "whole"))
    switches = SWITCHES if config.patch_embed is None else (*SWITCHES, "patch_embed")
    for name in switches:
        if not isinstance(getattr(config, name), bool):
            raise VituneError(f"{name}: got {getattr(config, name)!r}, expected true or false.")


def check_variant(config: Options) -> None:
    """Refuse a variant with a part that would be ignored or never train.

    Raises:
        VituneError: it is one.
    """
    if config.rank > 1 and config.sides != "both":
        raise VituneError(
            f"rank: got {config.rank!r} with sides={config.sides!r}, expected 1: one side alone "
            "has no rank."
        )
    if not config.hadamard and (config.sides != "both" or not config.residual):
        raise VituneError(
            "hadamard: got False beside one side or no residual, expected sides='both' and "
            "residual=True: W + S_out S_in has no such variant."
        )
    if config.init == "constant" and config.rank > 1:
        raise VituneError(
            f"init: got 'constant' with rank {config.rank}, expected rank 1: equal components "
            "get equal gradients and stay equal. Use init='normal' or 'uniform'."
        )
    if config.token_share < 1 and not (config.fast and config.hadamard):
        raise VituneError(
            f"token_share: got {config.token_share!r} beside fast=False or hadamard=False, "
            "expected 1: only the fast version of W ⊙ (1 + S_out S_in) sums over tokens itself."
        )
    is_stationary = config.sides == "both" or not config.residual
    if config.init == "zero" and is_stationary and not config.allow_stationary:
        raise VituneError(
            "init: got 'zero', expected another: no scale would ever get a gradient. "
            "Use init='identity', or allow_stationary=True to see it happen."
        )


def check_roles(config: Options) -> None:
    """Refuse roles that contradict another option, or that are not single layers.

    Raises:
        VituneError: there are such.
    """
    if config.roles is None:
        return
    wanted = expand_roles(config.roles)
    some_parts = len(wanted & set(QKV_PARTS)) in (1, 2)
    for name, contradicts, remedy in (
        ("norms", config.norms is None and wanted & set(NORM_ROLES), "roles without norms"),
        ("patch_embed", config.patch_embed is False and "patch_embed" in wanted, "roles without"),
        ("patch_embed", config.patch_embed and "patch_embed" not in wanted, "roles with it"),
        ("fused_qkv", config.fused_qkv == "whole" and some_parts, "all of q, k, v"),
    ):
        if contradicts:
            raise VituneError(
                f"{name}: got {getattr(config, name)!r} with roles={config.roles!r}, expected "
                f"{remedy}. Change one of the two."
            )
    unfit = sorted(wanted & {"block", "head"})
    if unfit:
        raise VituneError(
            f"roles: got {unfit!r}, expected single layers of the backbone: the head is trained "
            "whole (modules_to_save)."
        )
