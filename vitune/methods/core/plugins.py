"""Methods from outside the package: in a file, in an installed package, or in a user's script."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from vitune.errors import VituneError, one_line
from vitune.files import file_sha256
from vitune.methods.core.method_config import MethodConfig
from vitune.methods.core.peft_options import AT_FIRST_CONFIG
from vitune.methods.core.registry import METHODS, OUTSIDE, own_method

GROUP = "vitune.methods"
"""The entry point group in which an installed package names its configs."""

NAME = re.compile(r"[a-z][a-z0-9_]*")
ConfigClass = TypeVar("ConfigClass", bound=type[MethodConfig])

_files: dict[Path, str] = {}
_packages: dict[str, dict[str, str]] = {}


def register_method(config_class: ConfigClass) -> ConfigClass:
    """Register a method with PEFT and `--method`; also usable as a decorator above `@dataclass`.

    Registering a class twice is allowed, and so is defining it again, as a notebook does.

    Args:
        config_class: the method's config, a subclass of `MethodConfig`.

    Raises:
        VituneError: not a config, one without a name or a title, or a name that is taken.
    """
    _check(config_class)
    taken_by = PEFT_TYPE_TO_CONFIG_MAPPING.get(config_class.method.upper())
    if taken_by is not None and _named(taken_by) != _named(config_class):
        raise VituneError(
            f"register_method: got {config_class.method!r} of {_named(config_class)}, expected a "
            f"name of its own: {_named(taken_by)} has it. Choose another `method` in the class."
        )
    if taken_by is None or config_class.method in OUTSIDE:
        method = own_method(config_class, _origin(config_class))
        METHODS[method.name] = OUTSIDE[method.name] = method
    return config_class


def load_plugin(file: str | Path) -> tuple[str, ...]:
    """Run a Python file and register the methods that it defines; returns their names.

    Raises:
        VituneError: no such file, one that fails, one without a method, or a name that is taken.
    """
    path = Path(file).expanduser().resolve()
    if not path.is_file() or path.suffix != ".py":
        raise VituneError(f"--plugin: got {str(file)!r}, expected an existing Python file (.py).")
    module_name = f"vitune_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    sha256 = file_sha256(path)
    if _files.get(path) != sha256:
        _files[path] = sha256
        try:
            _run(path, module_name)
        except BaseException:
            del _files[path], sys.modules[module_name]
            raise
    names = tuple(
        found.method for found in _configs_in(sys.modules[module_name]) if register_method(found)
    )
    if not names:
        raise VituneError(
            f"--plugin: got {str(file)!r} without a method, expected a subclass of MethodConfig "
            "that has a `method`. See docs/adding-a-method.md."
        )
    return names


def load_entry_points() -> None:
    """Register what installed packages name in the group `vitune.methods`.

    A package that cannot be used is skipped with a warning. One that is just being imported has no
    config yet: it is tried again when the first config is made.
    """
    for entry in entry_points(group=GROUP):
        module = sys.modules.get(entry.module)
        if getattr(getattr(module, "__spec__", None), "_initializing", False):
            AT_FIRST_CONFIG.append(load_entry_points)
            continue
        try:
            config_class: Any = entry.load()
            _packages[_named(config_class)] = _package(entry)
            register_method(config_class)
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            warnings.warn(
                f"the entry point {entry.name!r} of {' '.join(_package(entry).values())} was "
                f"skipped ({reason}). Update or remove that package.",
                stacklevel=2,
            )


def require_plugin(name: str, plugin: Mapping[str, str]) -> None:
    """Check that the method `name` is registered and its code unchanged since training.

    Args:
        plugin: where the method came from, as an adapter's card says; empty for vitune's own.

    Raises:
        VituneError: the method is not known; the text says how to get it.
    """
    file, package = plugin.get("file"), plugin.get("package")
    if plugin and name not in METHODS:
        remedy = f"Pass --plugin {file}" if file else f"Install the package {package!r}"
        raise VituneError(
            f"method: got {name!r}, expected a known method. It was trained with a method from "
            f"outside vitune. {remedy}, or call vitune.register_method first."
        )
    if plugin and plugin.get("sha256") != METHODS[name].plugin.get("sha256"):
        warnings.warn(
            f"the method {name!r} was edited after training: {METHODS[name].plugin.get('file')} "
            f"differs from the original {file}. The adapter may behave differently now.",
            stacklevel=3,
        )


def _check(config_class: Any) -> None:
    if not (isinstance(config_class, type) and issubclass(config_class, MethodConfig)):
        raise VituneError(
            f"register_method: got {config_class!r}, expected a subclass of MethodConfig."
        )
    for name in ("method", "title", "source"):
        if not str(getattr(config_class, name, "")).strip():
            raise VituneError(
                f"register_method: got {_named(config_class)} without {name!r}, expected a text. "
                f"Write {name} = ... in the class."
            )
    if not NAME.fullmatch(config_class.method):
        raise VituneError(
            f"register_method: got method {config_class.method!r}, expected lower-case letters, "
            "digits and _, starting with a letter."
        )


def _run(path: Path, module_name: str) -> None:
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except VituneError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise VituneError(f"--plugin: got {str(path)!r}, which fails: {reason}.") from error


def _configs_in(module: ModuleType) -> list[type[MethodConfig]]:
    """Configs with a method name that the module itself defines."""
    return [
        found
        for found in vars(module).values()
        if isinstance(found, type)
        and issubclass(found, MethodConfig)
        and found.__module__ == module.__name__
        and "method" in vars(found)
    ]


def _named(config_class: Any) -> str:
    module, name = getattr(config_class, "__module__", "?"), getattr(config_class, "__name__", "?")
    return f"{module}.{name}"


def _origin(config_class: type) -> dict[str, str]:
    """The origin of a method: the package that names it, or the file that defines it."""
    if _named(config_class) in _packages:
        return _packages[_named(config_class)]
    try:
        path = Path(inspect.getfile(config_class)).resolve()
        return {"file": str(path), "sha256": file_sha256(path)}
    except (TypeError, OSError):
        return {"package": config_class.__module__}  # typed into an interpreter or a notebook


def _package(entry: EntryPoint) -> dict[str, str]:
    known = entry.dist
    return {"package": known.name, "version": known.version} if known else {"package": entry.value}
