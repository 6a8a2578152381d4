"""The options of every PEFT config, as vitune's methods understand them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from operator import index
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftConfig
from peft.utils import CONFIG_NAME
from peft.utils.constants import DUMMY_TARGET_MODULES

from vitune.errors import VituneError
from vitune.methods.core.field_checks import check_fields
from vitune.methods.core.model_card import name_vitune

ALL_LINEAR = "all-linear"
OPTIONS = frozenset({"roles", "blocks", "target_modules", "exclude_modules", ALL_LINEAR})
"""The fields that narrow where a method acts, and one value of `target_modules`."""

PREFIX = "vitune_"
"""The prefix of all tensor names of an adapter, by which PEFT and transformers recognise them."""

IMPORT_HINT = ": import vitune first"
"""The suffix of the PEFT type in a file: a reader without vitune shows it in a `KeyError`."""

AT_FIRST_CONFIG: list[Callable[[], object]] = []
"""Actions that wait until a config is made: entry points whose module was still being imported."""

Names = str | Sequence[str]
"""A regular expression for whole module names, or names and last parts of names."""


class MethodName(str):
    """A PEFT type: a string with the `value` and the text that PEFT expects of its enum's members.

    `get_model_status` takes the name from the text, "PeftType.LORA".
    """

    def __str__(self) -> str:
        return f"PeftType.{self.value}"

    @property
    def value(self) -> str:
        """The plain string."""
        return super().__str__()


@dataclass
class PeftOptions(PeftConfig):
    """The fields of PEFT's own configs that say where an adapter goes.

    Args:
        roles: roles to adapt; None means the method's own choice.
        blocks: indices over depth to adapt, negative ones count from the end; None means all.
            Sites outside blocks (patch embedding, final norm) are not affected.
        target_modules: which of the method's sites to adapt: names or last parts of names, one
            regular expression for whole names, or "all-linear". None means all sites. In the
            model's own copy of the config these are the exact names.
        exclude_modules: which of them to leave out, in the same syntax.
        layers_to_transform: PEFT's word for `blocks`.
        modules_to_save: modules trained whole in addition to the method, by name or last part of
            the name; None means the classifier head that is found in the model, [] means none.

    Raises:
        VituneError: an option that the method does not support, or an argument of another type
            than its field.
    """

    roles: tuple[str, ...] | None = field(default=None)
    blocks: tuple[int, ...] | None = field(default=None)
    target_modules: Names | None = field(default=None)
    exclude_modules: Names | None = field(default=None)
    layers_to_transform: Sequence[int] | int | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    method: ClassVar[str]
    title: ClassVar[str]
    narrowed_by: ClassVar[frozenset[str]] = OPTIONS
    mergeable: ClassVar[bool] = True
    shares_parameters: ClassVar[bool] = False
    combines: ClassVar[bool] = False
    replaces_head: ClassVar[bool] = False
    """Whether a layer of the method replaces the classifier."""

    def __post_init__(self) -> None:
        super().__post_init__()
        catch_up()
        check_fields(self, but=WHERE)
        self.peft_type = MethodName(self.method.upper())
        for name in ("roles", "blocks", "layers_to_transform"):
            setattr(self, name, _as_tuple(getattr(self, name)))
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, value if isinstance(value, str) else _as_tuple(value))
        if self.modules_to_save is not None:
            self.modules_to_save = list(_as_tuple(self.modules_to_save))
        if self.target_modules in (DUMMY_TARGET_MODULES, (DUMMY_TARGET_MODULES,)):
            self.target_modules = None
        self._read_layers()
        self._check_where()
        asked: dict[str, Any] = {name: getattr(self, name, None) for name in OPTIONS}
        asked[ALL_LINEAR] = self.target_modules if is_all_linear(self.target_modules) else None
        for name in sorted(OPTIONS - self.narrowed_by):
            if asked[name] is not None:
                raise VituneError(
                    f"{name}: got {asked[name]!r}, expected none: {self.refusals()[name]}. "
                    "Leave it out."
                )

    def _read_layers(self) -> None:
        given: Any = self.layers_to_transform
        if given is None:
            return
        if self.blocks not in (None, given):
            raise VituneError(
                f"layers_to_transform: got {given!r} beside blocks={self.blocks!r}, expected "
                "only one of the two: they mean the same."
            )
        self.blocks = given

    def _check_where(self) -> None:
        """Refuse what no network could have; blocks become plain integers, which JSON holds."""
        for name in ("roles", "target_modules", "exclude_modules", "modules_to_save"):
            names = getattr(self, name) or ()
            if not all(isinstance(part, str) for part in names):
                raise VituneError(f"{name}: got {names!r}, expected names.")
        if self.roles == ():
            raise VituneError("roles: got none, expected at least one. Leave it out for the usual.")
        try:
            self.blocks = None if self.blocks is None else tuple(map(_index, self.blocks))
        except TypeError:
            raise VituneError(f"blocks: got {self.blocks!r}, expected whole numbers.") from None
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            try:
                re.compile(value if isinstance(value, str) else "")
            except re.error as error:
                raise VituneError(
                    f"{name}: got {value!r} ({error}), expected a regular expression for whole "
                    "names, or a list of names."
                ) from None

    @classmethod
    def refusals(cls) -> dict[str, str]:
        """PEFT's functions and options that the method does not support, each with its reason."""
        found = {
            "adapter_names": "one batch runs through one set of adapters",
            "hotswap": "PEFT swaps only LoRA in place",
            "mixed": "PEFT mixes only its own methods in one model",
        }
        reasons = {
            "merge": (cls.mergeable, "it changes more than weights"),
            "inject_adapter_in_model": (not cls.shares_parameters, "its layers share parameters"),
            "add_weighted_adapter": (cls.combines, "its adapters cannot be added"),
            "modules_to_save": (not cls.replaces_head, "it replaces the classifier"),
        }
        found |= {verb: reason for verb, (is_taken, reason) in reasons.items() if not is_taken}
        return found | {name: cls.reason_against(name) for name in OPTIONS - cls.narrowed_by}

    @classmethod
    def reason_against(cls, option: str) -> str:
        """Why the method does not support one of OPTIONS."""
        return f"{cls.title} has a fixed choice of modules"

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """PEFT's, which also tells a reader without vitune what to import."""
        super().save_pretrained(save_directory, **kwargs)
        file = Path(save_directory) / CONFIG_NAME
        written = {**json.loads(file.read_text()), "peft_type": self.peft_type + IMPORT_HINT}
        file.write_text(json.dumps(written, indent=2, sort_keys=True))
        readme = Path(save_directory) / "README.md"
        if readme.is_file():
            name_vitune(readme, self.method, self.title)


WHERE = frozenset(field.name for field in fields(PeftOptions))
"""The fields of every method, which `PeftOptions` reads itself."""


def method_name(config: Any) -> str:
    """The name of a config's method as vitune's commands take it: "rlrr", "lora".

    The PEFT type of PEFT's own configs is an enum, whose text is "PeftType.LORA".
    """
    peft_type = getattr(config, "peft_type", "?")
    return str(getattr(peft_type, "value", peft_type)).lower()


def catch_up() -> None:
    """Run what waits in AT_FIRST_CONFIG; actions that must keep waiting add themselves again."""
    waiting = [*AT_FIRST_CONFIG]
    AT_FIRST_CONFIG.clear()
    for step in waiting:
        step()


def matches(names: Names | None, module: str) -> bool:
    """Whether `names` includes a module; None means no module."""
    if names is None:
        return False
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return module in names or module.endswith(tuple(f".{name}" for name in names))


def is_all_linear(names: Names | None) -> bool:
    """Whether `target_modules` stands for every linear layer."""
    return isinstance(names, str) and names.lower() == ALL_LINEAR


def is_saved_whole(modules_to_save: Sequence[str] | None, module: str) -> bool:
    """Whether a module is one of `modules_to_save` or lies inside one."""
    parts = module.split(".")
    around = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return any(matches(modules_to_save, outer) for outer in around)


def _index(value: Any) -> int:
    """An integer; TypeError for anything else, True and False too."""
    if isinstance(value, bool):
        raise TypeError(f"{value!r} is no index")
    return index(value)


def _as_tuple(value: Any) -> Any:
    if value is None:
        return None
    is_single = isinstance(value, str) or getattr(value, "ndim", 1) == 0
    return tuple(value) if isinstance(value, Iterable) and not is_single else (value,)
