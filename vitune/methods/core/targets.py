"""The sites of one adapter in one model: the method's choice, narrowed by PEFT's options."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from vitune.backbones import bare_name
from vitune.backbones.sites import Site, head_names
from vitune.backbones.structure import unwrapped
from vitune.errors import BackboneError, listed, nearest
from vitune.methods.core.beyond_blocks import modules_beyond_blocks
from vitune.methods.core.in_projection import linear_view
from vitune.methods.core.peft_options import Names, is_all_linear, is_saved_whole, matches
from vitune.methods.core.roles import LINEAR_ROLES, site_roles


def resolve(config: Any, model: nn.Module, known: Sequence[Site]) -> tuple[Site, ...]:
    """The sites that `config` adapts in `model`; fills in `modules_to_save` and `roles`.

    Args:
        config: the model's own copy, which this writes to.
        known: every site of `model`.

    Raises:
        BackboneError: a name that matches nothing, or nothing left to adapt.
        VituneError: options that the method does not support.
    """
    config.modules_to_save = _saved_modules(config.modules_to_save, model, known)
    wants_linears = is_all_linear(config.target_modules)
    if wants_linears and config.roles is None and "roles" in config.narrowed_by:
        config.roles = _linear_roles(model, known)
    open_to = [s for s in known if s.role != "block" or not _excluded(config, s.name)]
    blocks = [site.name for site in known if site.role == "block"]
    if blocks and not any(site.role == "block" for site in open_to):
        raise _nothing_left(config, blocks)
    chosen = config.choose(open_to)
    if not chosen:
        return ()
    kept = [
        site
        for site in chosen
        if not _excluded(config, site.name)
        and not is_saved_whole(config.modules_to_save, bare_name(site.name))
        and (not wants_linears or _is_linear(model, site))
    ]
    if config.target_modules is not None and not wants_linears:
        names = meant(config.target_modules, [site.name for site in kept], config.title)
        kept = [site for site in kept if site.name in names]
    if not kept:
        raise _nothing_left(config, [site.name for site in chosen])
    return tuple(kept)


def meant(wanted: Names, names: Sequence[str], by: str) -> set[str]:
    """Those of `names` that `wanted` selects; each of its entries must match at least one.

    Raises:
        BackboneError: an entry that matches none.
    """
    entries: Sequence[Any] = [wanted] if isinstance(wanted, str) else [(name,) for name in wanted]
    found: set[str] = set()
    missing = []
    for entry in entries:
        exact = {name for name in names if not isinstance(entry, str) and name == entry[0]}
        these = exact or {name for name in names if matches(entry, bare_name(name))}
        found |= these
        missing += [] if these else [entry if isinstance(entry, str) else entry[0]]
    if missing:
        raise BackboneError(
            f"target_modules: got {missing!r}, where {by} does not act, expected names among "
            f"{listed(names)}. Name further roles with roles=..., or check whether this is the "
            "backbone that the adapter was made for."
        )
    return found


def warn_of_idle_exclusion(config: Any, modules: Sequence[str]) -> None:
    """Warn if `exclude_modules` matches nothing that the method would adapt."""
    if config.exclude_modules and not any(_excluded(config, name) for name in modules):
        warnings.warn(
            f"exclude_modules={config.exclude_modules!r} excludes nothing: {config.title} acts "
            f"on {listed(modules)}.",
            stacklevel=2,
        )


def _nothing_left(config: Any, places: Sequence[str]) -> BackboneError:
    return BackboneError(
        f"{config.title}: got exclude_modules={config.exclude_modules!r} and "
        f"modules_to_save={config.modules_to_save!r}, expected something left to adapt. "
        f"It acts here on {listed(places)}."
    )


def _excluded(config: Any, name: str) -> bool:
    return matches(config.exclude_modules, bare_name(name))


def _linear_roles(model: nn.Module, sites: Sequence[Site]) -> tuple[str, ...]:
    found = {role for site in sites if _is_linear(model, site) for role in site_roles(site)}
    return tuple(role for role in LINEAR_ROLES if role in found)


def _is_linear(model: nn.Module, site: Site) -> bool:
    module = unwrapped(linear_view(model.get_submodule(site.name)))
    return site.role != "head" and isinstance(module, nn.Linear)


def _saved_modules(
    given: Sequence[str] | None, model: nn.Module, known: Sequence[Site]
) -> list[str]:
    """The names to train whole: those given, or the classifiers; warns about what stays frozen."""
    heads = list(head_names(model))
    if given is None:
        beyond = [] if heads else modules_beyond_blocks(model, known)
        if beyond:
            warnings.warn(
                f"{type(model).__name__}: no classifier was found; {listed(beyond)} stay frozen. "
                "Name what should train in modules_to_save=[...], or [] for nothing.",
                stacklevel=2,
            )
        return heads
    modules = [bare_name(name) for name, _ in model.named_modules() if name]
    for name in given:
        if not any(matches((bare_name(name),), module) for module in modules):
            raise BackboneError(
                f"modules_to_save: got {name!r}, expected a module of {type(model).__name__} or "
                f"the last part of its name. {nearest(name, modules)}"
            )
    left = [head for head in heads if not is_saved_whole(given, head)]
    if given and left:
        warnings.warn(
            f"modules_to_save={list(given)!r} leaves out the classifier {listed(left)}, which "
            "stays frozen. Add its name to train it.",
            stacklevel=2,
        )
    return list(given)
