"""The sites that a list of roles and blocks selects; groups of roles; parts of a fused linear."""

from __future__ import annotations

from collections.abc import Sequence

from vitune.backbones.sites import ROLES, Site
from vitune.errors import BackboneError, VituneError, nearest

QKV_PARTS = ("q", "k", "v")
LINEAR_ROLES = (*QKV_PARTS, "attn_out", "fc1", "fc2", "reduction")
NORM_ROLES = ("norm1", "norm2", "final_norm")
GROUPS = {
    "attn": (*QKV_PARTS, "attn_out"),
    "mlp": ("fc1", "fc2"),
    "linears": LINEAR_ROLES,
    "norms": NORM_ROLES,
    "qkv": QKV_PARTS,
}


def choose_sites(
    sites: Sequence[Site],
    roles: Sequence[str],
    blocks: Sequence[int] | None,
    *,
    named: bool,
    by: str,
) -> tuple[Site, ...]:
    """The sites with one of `roles` in one of `blocks` (sites outside blocks always stay).

    Args:
        named: the user named the roles: each must then be found.
        by: the method, for the error text.

    Raises:
        VituneError: an unknown role, or a block that the backbone does not have.
        BackboneError: no site at all, or a named role that is not there.
    """
    wanted = expand_roles(roles)
    chosen = [site for site in sites if site_roles(site) & wanted]
    found = {role for site in sites for role in site_roles(site)}
    missing = {role for role in roles if not expand_roles([role]) & found}
    if not chosen or (named and missing):
        raise BackboneError(
            f"{by} roles: got {sorted(missing)!r}, expected roles of this backbone. "
            f"It has: {', '.join(sorted(found))}."
        )
    if blocks is None:
        return tuple(chosen)
    kept = block_indices(sites, blocks)
    return tuple(site for site in chosen if site.block is None or site.block in kept)


def expand_roles(roles: Sequence[str]) -> set[str]:
    """Single roles for a list that may name groups (attn, mlp, linears, norms, qkv)."""
    wanted: set[str] = set()
    for role in roles:
        if role not in GROUPS and role not in ROLES:
            hint = nearest(role, [*ROLES, *GROUPS])
            raise VituneError(f"roles: got {role!r}, expected roles or groups of them. {hint}")
        wanted.update(GROUPS.get(role, (role,)))
    return wanted


def parts_of(site: Site, roles: Sequence[str] | None) -> tuple[int, ...]:
    """Indices of the parts of a fused qkv that `roles` names; all of them for None."""
    if roles is None or site.num_parts == 1:
        return tuple(range(site.num_parts))
    wanted = expand_roles(roles)
    return tuple(index for index, part in enumerate(site.parts) if part in wanted)


def require_all_parts(site: Site, roles: Sequence[str] | None, by: str) -> None:
    """Refuse roles that name only a part of a fused qkv that is adapted as a whole.

    Raises:
        BackboneError: they do.
    """
    left_out = [] if roles is None else sorted(set(site.parts) - expand_roles(roles))
    if left_out:
        raise BackboneError(
            f"{by} at {site.name!r} (qkv): got roles without {left_out!r}, expected all of "
            f"{', '.join(site.parts)}. {by} adapts this fused layer as a whole; use roles=qkv,..."
        )


def site_roles(site: Site) -> set[str]:
    """The roles of a site: a fused qkv has the role of each of its parts."""
    return set(site.parts) if site.role == "qkv" else {site.role}


def block_indices(sites: Sequence[Site], blocks: Sequence[int]) -> set[int]:
    """Non-negative indices for `blocks`; VituneError if the backbone lacks one."""
    depth = 1 + max((site.block for site in sites if site.block is not None), default=-1)
    odd = [index for index in blocks if not -depth <= index < depth]
    if odd:
        raise VituneError(
            f"blocks: got {odd!r}, expected indices from {-depth} to {depth - 1}: "
            f"the backbone has {depth} blocks."
        )
    return {index % depth for index in blocks}
