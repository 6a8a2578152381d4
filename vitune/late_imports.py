"""Imports that wait: names of a package until they are used, work until a library is loaded."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def late_names(package: str, files: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """A `__getattr__` for a package: imports a file when one of its names is first used.

    Args:
        files: the package's files by name, each with what it holds.
    """
    file_of = {name: file for file, names in files.items() for name in names}

    def get(name: str) -> Any:
        if name not in file_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{file_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get


def after_import(name: str, action: Callable[[], object]) -> None:
    """Call `action` once the top-level module `name` is loaded: now, if it is already."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _After(name, action))


@contextmanager
def uncollected() -> Iterator[None]:
    """Within the context, imports run without garbage collection: a fifth less processor time.

    Loading PyTorch, timm and PEFT makes 800,000 objects that live as long as the process, and the
    collector would walk through them again and again. Afterwards they are exempt from collection.
    Only for a process of our own; does nothing if PyTorch is loaded already.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        # Libraries that are not collected at exit report leaks on stderr.
        atexit.register(gc.unfreeze)


class _After(MetaPathFinder):
    """Leaves finding to the other finders; runs the action at the end of the module's loading."""

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        self.name, self.action, self.is_asking = name, action, False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self.is_asking:
            return None
        self.is_asking = True  # the lookup below comes through here again
        try:
            spec = find_spec(fullname)
        finally:
            self.is_asking = False
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_act(module: ModuleType) -> None:
            load(module)
            if self in sys.meta_path:  # do not act twice on a reloaded module
                sys.meta_path.remove(self)
                self.action()

        # Set on this one loader: our own class would hide the loader's other abilities
        # (sources for tracebacks, files in the package).
        spec.loader.exec_module = load_and_act  # type: ignore[method-assign]
        return spec
