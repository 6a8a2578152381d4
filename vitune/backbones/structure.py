"""Walk a model by child names, looking through the layers that PEFT wraps around the originals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import nn

WRAPPED = ("base_layer", "original_module")
"""Attributes under which PEFT layers keep the module they replaced."""


HOLDERS = {"base_model": "disable_adapter", "model": "inject_adapter"}
"""The child in which a model and a tuner of PEFT hold the network, and a verb that only they have.

A network may have such a child as well; transformers' DINOv3 has a `model`.
"""

STAND_INS = "parametrizations"
"""The child of a module that holds the replacements of its parameters."""

IN_PROJECTION = "in_proj"
"""The child of a `torch.nn.MultiheadAttention` that represents its packed q, k, v."""


def unwrapped(module: nn.Module) -> nn.Module:
    """The original module inside any number of PEFT layers, or `module` itself."""
    while True:
        inner = _wrapped_child(module)
        if inner is None:
            return module
        module = module.get_submodule(inner)


def root_prefix(model: nn.Module) -> str:
    """Dotted path from `model` to the network that PEFT holds, '' when `model` is that network."""
    parts: list[str] = []
    while True:
        held = (name for name, verb in HOLDERS.items() if hasattr(type(model), verb))
        step = next((name for name in held if name in model._modules), None)
        if step is None:
            return ".".join(parts)
        parts.append(step)
        model = model.get_submodule(step)


def network(model: nn.Module) -> nn.Module:
    """The network that was passed to PEFT, or `model` itself."""
    return model.get_submodule(root_prefix(model))


def joined(*parts: str) -> str:
    """A dotted name from the non-empty parts."""
    return ".".join(part for part in parts if part)


def resolve(root: nn.Module, path: str) -> tuple[str, nn.Module] | None:
    """The actual name and module at `path` below `root`, stepping through wrappers on the way.

    The name contains the wrappers' own steps (`blocks.0.base_layer.attn`), so that
    `root.get_submodule(name)` works; the last module is returned still wrapped.
    """
    module, names = root, []
    for step in path.split("."):
        while step not in module._modules:
            inner = _wrapped_child(module)
            if inner is None:
                return None
            names.append(inner)
            module = module.get_submodule(inner)
        child = module._modules[step]
        if child is None:
            return None
        names.append(step)
        module = child
    return ".".join(names), module


def find(root: nn.Module, paths: Iterable[str], kinds: type | tuple[type, ...]) -> str | None:
    """The name of the first of `paths` whose original module is one of `kinds`."""
    for path in paths:
        found = resolve(root, path)
        if found is not None and isinstance(unwrapped(found[1]), kinds):
            return found[0]
    return None


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises features: a layer with one weight per feature, or none at all."""
    original = unwrapped(module)
    if original._modules.keys() - {STAND_INS}:
        return False
    weight = getattr(original, "weight", None)
    return hasattr(original, "normalized_shape") or (
        isinstance(weight, nn.Parameter) and weight.ndim == 1
    )


def find_norm(root: nn.Module, paths: Iterable[str]) -> str | None:
    """The name of the first of `paths` that holds a normalisation layer (an Identity is none)."""
    for path in paths:
        found = resolve(root, path)
        if found is not None and is_norm(found[1]):
            return found[0]
    return None


def walk(
    root: nn.Module, stop: Callable[[nn.Module], bool], name: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Every module below `root` in registration order, without descending where `stop` is true.

    Wrapped modules are visited once, as the wrapper; the wrapper's own layers are not visited.
    """
    for child_name, child in root.named_children():
        full = joined(name, child_name)
        yield full, child
        if stop(child):
            continue
        inner = child
        while (step := _wrapped_child(inner)) is not None:
            full = joined(full, step)
            inner = inner.get_submodule(step)
        yield from walk(inner, stop, full)


def _wrapped_child(module: nn.Module) -> str | None:
    """The name under which `module` keeps the one it replaced."""
    return next((name for name in WRAPPED if module._modules.get(name) is not None), None)
