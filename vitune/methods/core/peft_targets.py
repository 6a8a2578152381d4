"""Where PEFT's own methods act on a vision transformer, and why some of them cannot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from vitune.backbones.sites import find_sites, head_name
from vitune.backbones.structure import unwrapped
from vitune.methods.core.roles import LINEAR_ROLES, NORM_ROLES, choose_sites

TARGET_ROLES: dict[str, tuple[str, ...]] = {
    "ln_tuning": NORM_ROLES,
    "ia3": ("k", "v", "fc2"),
}
"""Roles that a PEFT method acts on, if not the linears of the blocks."""

EXTRA_ROLES: dict[str, dict[str, tuple[str, ...]]] = {"ia3": {"feedforward_modules": ("fc2",)}}
"""Further arguments of a PEFT config that name modules."""

QUIET: dict[str, dict[str, Any]] = {"frod": {"progressbar": False}}
"""Arguments that keep a PEFT method from writing between vitune's own lines."""

MIXING_TOKENS = frozenset({"lily"})
"""Methods whose linears mix tokens: Lily's router averages its probabilities over tokens."""

_NEEDS_LANGUAGE_MODEL = "it acts on the token embeddings of a language model"
UNSUPPORTED: dict[str, str] = {
    "adalora": "its ranks are re-allocated by a call that the training loop must make each step",
    "poly": "it needs the task of every image",
    "shadow": "it wraps the decoder blocks of a language model",
    "adaption_prompt": "it is written for the attention of Llama, Mistral and GPT-2",
    "cartridge": "it trains the key-value cache of a language model",
    "cpt": _NEEDS_LANGUAGE_MODEL,
    "multitask_prompt_tuning": _NEEDS_LANGUAGE_MODEL,
    "p_tuning": _NEEDS_LANGUAGE_MODEL,
    "prefix_tuning": "it trains the key-value cache of a language model",
    "prompt_tuning": _NEEDS_LANGUAGE_MODEL + "; visual prompt tuning does the same for images",
    "trainable_tokens": _NEEDS_LANGUAGE_MODEL,
    "xlora": "it mixes trained LoRA adapters by a language model's hidden states",
}
"""PEFT methods that do not work on an image classifier, with the reason."""


def peft_targets(name: str, model: nn.Module) -> dict[str, Any]:
    """What the config of PEFT's method `name` is given: names of modules, the head, and silence.

    A layer whose owner reads its weight instead of calling it is left out: PEFT's layers act in
        their forward pass, which would be bypassed.

    Raises:
        BackboneError: the backbone has none of the roles.
    """
    head = head_name(model)
    roles = {"target_modules": TARGET_ROLES.get(name, LINEAR_ROLES), **EXTRA_ROLES.get(name, {})}
    named = {argument: _modules(name, model, wanted) for argument, wanted in roles.items()}
    exact = {argument: _exactly(model, modules) for argument, modules in named.items()}
    return {**exact, **QUIET.get(name, {}), "modules_to_save": [head] if head else None}


def _modules(name: str, model: nn.Module, roles: Sequence[str]) -> list[str]:
    sites = choose_sites(find_sites(model), roles, None, named=False, by=name)
    kinds = nn.Linear if name not in TARGET_ROLES else nn.Module
    return [
        site.name
        for site in sites
        if not site.direct_weight and isinstance(unwrapped(model.get_submodule(site.name)), kinds)
    ]


def _exactly(model: nn.Module, names: list[str]) -> list[str] | str:
    """`names`, or a regular expression if PEFT's matching by suffix would find more."""
    suffixes = tuple(f".{name}" for name in names)
    if any(name.endswith(suffixes) for name, _ in model.named_modules()):
        return "|".join(map(re.escape, names))
    return names
