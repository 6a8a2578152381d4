"""Choose sites by role and block, or list the available roles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vitune.backbones.site import ROLES, Site
from vitune.errors import BackboneError, nearest


def sites_with_roles(
    sites: Iterable[Site],
    roles: Iterable[str],
    *,
    blocks: Sequence[int] | None = None,
    needed_by: str,
) -> tuple[Site, ...]:
    """The sites of the requested roles, each once, in the order of `sites`.

    Args:
        sites: what `find_sites` returned.
        roles: roles that must all exist. A fused `qkv` counts as q, k and v, and separate q, k and
            v count as `qkv`.
        blocks: indices to keep, negative ones from the end; None keeps all. Sites outside blocks
            are kept whatever `blocks` is.
        needed_by: the caller's name, for error messages.

    Raises:
        BackboneError: an unknown role, a role without a site, or a block index out of range.
    """
    sites = tuple(sites)
    found = {site.role for site in sites}
    wanted: set[str] = set()
    for role in roles:
        if role not in ROLES:
            raise BackboneError(
                f"role: got {role!r}, expected one of {', '.join(ROLES)}. {nearest(role, ROLES)}"
            )
        answers = _answers(role, found)
        if not answers:
            names = ", ".join(known for known in ROLES if known in found)
            raise BackboneError(
                f"role {role!r}: got a backbone without such a layer, expected one because "
                f"{needed_by} acts on it. Roles found here: {names}."
            )
        wanted |= answers
    kept = None if blocks is None else _kept_blocks(sites, blocks, needed_by)
    return tuple(
        site
        for site in sites
        if site.role in wanted and (kept is None or site.block is None or site.block in kept)
    )


def _answers(role: str, found: set[str]) -> set[str]:
    """The existing roles that satisfy a request for `role`."""
    if role in found:
        return {role}
    if role in ("q", "k", "v") and "qkv" in found:
        return {"qkv"}
    if role == "qkv" and {"q", "k", "v"} <= found:
        return {"q", "k", "v"}
    return set()


def _kept_blocks(sites: tuple[Site, ...], blocks: Sequence[int], needed_by: str) -> set[int]:
    num_blocks = len({site.block for site in sites if site.block is not None})
    for index in blocks:
        if not -num_blocks <= index < num_blocks:
            raise BackboneError(
                f"blocks of {needed_by}: got {index!r}, expected indices from {-num_blocks} to "
                f"{num_blocks - 1}. This backbone has {num_blocks} blocks."
            )
    return {index % num_blocks for index in blocks}
