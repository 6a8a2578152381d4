"""PEFT's `modules_to_save`: whole modules that are trained and stored beside an adapter."""

from __future__ import annotations

from collections.abc import Sequence

from peft.utils import ModulesToSaveWrapper
from torch import nn

from vitune.backbones import bare_name
from vitune.errors import AdapterError
from vitune.methods.core.layer import MethodLayer
from vitune.methods.core.peft_options import PREFIX, Names, matches


def save_whole(
    model: nn.Module,
    adapter: str,
    chosen: Names | None,
    *,
    active: Sequence[str],
    is_frozen: bool,
) -> None:
    """Wrap the modules that `chosen` names as PEFT does, but compare whole parts of names.

    PEFT compares the ends of strings: "out" would match `scale_out` too.

    Args:
        active: adapters in use; a module wrapped for another one stays switched off.
        is_frozen: whether the copies do not train.
    """
    passed = tuple[str, ...]()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name.startswith(passed) or not name:
            continue
        if isinstance(module, MethodLayer):
            passed += (f"{name}.{PREFIX}",)
        if not matches(chosen, bare_name(name)):
            continue
        if isinstance(module, ModulesToSaveWrapper):
            module.update(adapter)
            module.set_adapter(module.active_adapter, inference_mode=is_frozen)
        else:
            owner, _, leaf = name.rpartition(".")
            module = ModulesToSaveWrapper(module, adapter)
            module.set_adapter(adapter if adapter in active else [], inference_mode=is_frozen)
            setattr(model.get_submodule(owner), leaf, module)
        passed += (f"{name}.",)
    wholes = tuple(part for part in model.modules() if isinstance(part, ModulesToSaveWrapper))
    for layer in model.modules():
        if isinstance(layer, MethodLayer):
            layer.saved_whole = wholes


def use_whole(model: nn.Module, adapters: Sequence[str], verb: str) -> None:
    """Run the copies of `adapters` in the modules saved whole, and the originals elsewhere.

    Args:
        verb: the function of PEFT that asks, for the error.

    Raises:
        AdapterError: two of `adapters` have a copy of the same module.
    """
    require_one_each(model, adapters, verb)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.set_adapter([name for name in adapters if name in module.modules_to_save])


def require_one_each(model: nn.Module, adapters: Sequence[str], verb: str = "set_adapter") -> None:
    """Refuse adapters that cannot be active together: a module saved whole runs as one copy.

    Raises:
        AdapterError: two of `adapters` have a copy of the same module.
    """
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            rivals = [one for one in adapters if one in module.modules_to_save]
            if len(rivals) > 1:
                raise AdapterError(
                    f"{verb}: got {list(adapters)!r}, expected at most one with its own "
                    f"{bare_name(name)!r}, which {' and '.join(map(repr, rivals))} each train "
                    "whole. Add the others with modules_to_save=[], or add their sum with "
                    "add_weighted_adapter."
                )
