"""Modules whose class was made at run time, so that some attributes are read elsewhere.

`nn.Module` keeps a parameter in `_parameters` and finds it when the class has nothing of that name.
A class with a property of that name therefore decides what is read, while the parameter itself
keeps its place, its name and its storage: state dicts, optimisers and FSDP see what they always
saw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn


class Dressed:
    """What such a class adds: a module of it copies and pickles like any other."""

    made_by: ClassVar[tuple[Callable[..., type], tuple[Any, ...]]]
    """The function that makes the class, and its arguments; the first is the plain class."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, self.made_by, self.__dict__


def dress(module: Any, make: Callable[..., type], *arguments: Any) -> None:
    """Give `module` the class that `make(its plain class, *arguments)` returns."""
    kind: Any = make(plain_class(module), *arguments)
    kind.made_by = (make, (plain_class(module), *arguments))
    module.__class__ = kind


def undress(module: Any) -> None:
    """Give `module` its plain class back."""
    module.__class__ = plain_class(module)


def plain_class(module: Any) -> type:
    """The class of `module` as its author wrote it."""
    kind = type(module)
    return kind.made_by[1][0] if issubclass(kind, Dressed) else kind


def read_elsewhere(name: str, read: Callable[[Any], Any]) -> property:
    """A property over the parameter `name`; FSDP may set a plain tensor in its place."""

    def write(module: Any, value: Tensor) -> None:
        module.__dict__[name] = value

    def delete(module: Any) -> None:
        del module.__dict__[name]

    return property(read, write, delete)


def own_tensor(module: nn.Module, name: str) -> Tensor | None:
    """The parameter that `module` itself holds, whatever its class makes of the name."""
    if name in module._parameters:
        return module._parameters[name]
    if name in module.__dict__:
        found: Tensor | None = module.__dict__[name]
        return found
    raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}")


def _blank(make: Callable[..., type], arguments: tuple[Any, ...]) -> Any:
    kind: Any = make(*arguments)
    kind.made_by = (make, arguments)
    return kind.__new__(kind)
