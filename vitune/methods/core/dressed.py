"""Modules that read some of their own parameters through a layer.

Such a parameter moves into a child of its owner, where optimisers and FSDP find it like any other;
the owner gets a class, made at run time, with a property in its place. State dicts still list it
under its original name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn


class Keeper(nn.Module):
    """A child that keeps parameters of the module around it."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if _is_flattened(self):
            super()._save_to_state_dict(destination, prefix, keep_vars)


class Dressed(nn.Module):
    """What the class of an owner adds; its modules can be copied and pickled like any other."""

    made_by: ClassVar[tuple[Callable[..., type], tuple[Any, ...]]]
    """The function that makes the class, and its arguments; the first is the plain class."""

    def keepers(self) -> dict[str, str]:
        """The path of each moved parameter below this module, by its own name."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, self.made_by, self.__dict__

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, path in self.keepers().items():
            keeper, _, leaf = path.rpartition(".")
            value = self.get_submodule(keeper)._parameters.get(leaf)
            if value is not None and not _is_flattened(self.get_submodule(keeper)):
                destination[prefix + name] = value if keep_vars else value.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name, path in self.keepers().items():
            if prefix + name in state_dict:
                state_dict[prefix + path] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def dress(module: Any, make: Callable[..., type], *arguments: Any) -> None:
    """Give `module` the class that `make(its plain class, *arguments)` returns."""
    kind: Any = make(plain_class(module), *arguments)
    kind.made_by = (make, (plain_class(module), *arguments))
    module.__class__ = kind


def undress(module: Any) -> None:
    """Restore the plain class of `module`."""
    module.__class__ = plain_class(module)


def plain_class(module: Any) -> type:
    """The class of `module` as its author wrote it."""
    kind = type(module)
    return kind.made_by[1][0] if issubclass(kind, Dressed) else kind


def dressed_class(kind: type, mixin: type, **properties: Any) -> type:
    """`kind` with what `mixin` and `properties` add, under its own name."""
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__, **properties})


def _blank(make: Callable[..., type], arguments: tuple[Any, ...]) -> Any:
    kind: Any = make(*arguments)
    kind.made_by = (make, arguments)
    return kind.__new__(kind)


def _is_flattened(keeper: nn.Module) -> bool:
    """Whether FSDP holds the parameters; it then looks for them under their names in here."""
    held = [value for value in keeper._parameters.values() if value is not None]
    return not held or any(getattr(value, "_fsdp_flattened", False) for value in held)
