"""The registry of methods, with names and arguments: ours and PEFT's in one table."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from torch import nn

from vitune.errors import VituneError, nearest
from vitune.methods.core.default_settings import recorded
from vitune.methods.core.method_config import MethodConfig
from vitune.methods.core.peft_options import method_name
from vitune.methods.core.peft_registration import register
from vitune.methods.core.peft_targets import MIXING_TOKENS, UNSUPPORTED, peft_targets

INTERNAL_FIELDS = frozenset(field.name for field in dataclasses.fields(PeftConfig)) | {
    "target_modules",
    "modules_to_save",
}
NARROWED_BY_ROLES = frozenset({"exclude_modules", "layers_to_transform"})
"""PEFT's options for where an adapter goes; `--method-arg` narrows ours by role and block."""

EXPONENTIAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
"""A number such as 1e-3."""

PEFT_DEFAULT_LR, PEFT_DEFAULT_WEIGHT_DECAY = 1e-3, 1e-4


@dataclass(frozen=True)
class Method:
    """One way to train: its name, where it comes from, and how its PEFT config is made.

    Args:
        name: what `--method` takes.
        title: what tables and reports show.
        source: paper or convention.
        config_class: the PEFT config.
        ours: whether the layers are `MethodLayer`s; else PEFT's.
        plugin: the origin of a method from outside vitune: "file" and "sha256", or "package"
            and "version"; empty for vitune's own and PEFT's.
    """

    name: str
    title: str
    source: str
    config_class: type[PeftConfig]
    ours: bool
    plugin: Mapping[str, str] = field(default_factory=dict, hash=False)

    def default_lr(self, backbone: str) -> float:
        """Peak learning rate of a plain start: recorded for `backbone`, or usual."""
        return float(recorded(backbone, self.name, "lr", self.usual_lr))

    def has_recorded_lr(self, backbone: str) -> bool:
        """Whether a rate was chosen for the method on `backbone`."""
        return recorded(backbone, self.name, "lr", None) is not None

    @property
    def usual_lr(self) -> float:
        """The method's rate on a ViT-B, which vitune's rule scales for other runs."""
        return float(getattr(self.config_class, "default_lr", PEFT_DEFAULT_LR))

    def default_weight_decay(self, backbone: str) -> float:
        """AdamW's weight decay used when the user gives none: recorded, or usual."""
        usual = getattr(self.config_class, "default_weight_decay", PEFT_DEFAULT_WEIGHT_DECAY)
        return float(recorded(backbone, self.name, "weight_decay", usual))

    @property
    def solved(self) -> bool:
        """Whether the head is solved from features instead of trained by gradient steps."""
        return bool(getattr(self.config_class, "solved", False))

    @property
    def stepped(self) -> str:
        """For a solved method, the one that trains the same model by gradient steps, or ''."""
        return str(getattr(self.config_class, "stepped", ""))

    @property
    def starts_at_probe(self) -> bool:
        """Whether the head starts at the solved probe unless the user says otherwise."""
        return bool(getattr(self.config_class, "starts_at_probe", True))

    def from_identity(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`arguments`, plus those it needs to start at the pre-trained function, if it can."""
        return {**getattr(self.config_class, "identity_args", {}), **arguments}

    @property
    def mergeable(self) -> bool:
        """Whether the result folds into the weights; PEFT's methods show it when merging."""
        return bool(getattr(self.config_class, "mergeable", True))

    @property
    def speed_arguments(self) -> Mapping[str, Mapping[str, Any]]:
        """By preset of `--speed`, the arguments that make the method less exact."""
        return dict(getattr(self.config_class, "speed_arguments", {}))

    @property
    def defaults(self) -> dict[str, Any]:
        """Every argument that has a plain default, with it."""
        return {
            field.name: field.default
            for field in dataclasses.fields(self.config_class)
            if field.default is not dataclasses.MISSING
        }

    def argument_names(self) -> tuple[str, ...]:
        """Names that `--method-arg` accepts."""
        is_ours = issubclass(self.config_class, MethodConfig)
        hidden = INTERNAL_FIELDS | NARROWED_BY_ROLES if is_ours else INTERNAL_FIELDS
        return tuple(
            field.name
            for field in dataclasses.fields(self.config_class)
            if field.init and field.name not in hidden
        )

    def configure(self, model: nn.Module, arguments: Mapping[str, Any] | None = None) -> PeftConfig:
        """The PEFT config for `model`; strings among `arguments` are read as YAML values.

        Raises:
            VituneError: an unknown argument, or a value out of range.
            BackboneError: the backbone has no site the method needs.
        """
        values = {key: _value(text) for key, text in (arguments or {}).items()}
        unknown = sorted(set(values) - set(self.argument_names()))
        if unknown:
            raise VituneError(
                f"--method-arg: got {unknown[0]!r}, expected an argument of {self.name!r}. "
                f"{nearest(unknown[0], self.argument_names())}"
            )
        if not self.ours:
            values = {**peft_targets(self.name, model), **values}
        try:
            return self.config_class(**values)
        except VituneError:
            raise
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise VituneError(f"--method-arg of {self.name!r}: got {values!r}: {reason}") from error


def own_method(config_class: type[MethodConfig], plugin: Mapping[str, str] | None = None) -> Method:
    """Register a method whose layers are `MethodLayer`s with PEFT, and describe it."""
    register(config_class)
    name, title, source = config_class.method, config_class.title, config_class.source
    return Method(name, title, source, config_class, ours=True, plugin=plugin or {})


def peft_methods() -> dict[str, Method]:
    """PEFT's own methods that inject layers into modules, by lower-case name."""
    found = {}
    for peft_type, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        name = str(getattr(peft_type, "value", peft_type)).lower()
        names = {field.name for field in dataclasses.fields(config_class)}
        takes_modules = {"target_modules", "modules_to_save"} <= names
        if peft_type in PEFT_TYPE_TO_PREFIX_MAPPING and takes_modules:
            if issubclass(config_class, MethodConfig) or name in UNSUPPORTED:
                continue
            title = config_class.__name__.removesuffix("Config").replace("Lora", "LoRA")
            found[name] = Method(name, title, "PEFT", config_class, ours=False)
    return found


def keeps_tokens_apart(model: nn.Module) -> bool:
    """Whether no adapter on `model` mixes tokens within a linear layer."""
    configs = getattr(model, "peft_config", {}).values()
    return not {method_name(config) for config in configs} & MIXING_TOKENS


def _value(given: Any) -> Any:
    """A Python value from command-line text: YAML scalars and lists, commas making a list.

    1e-3 is a number, which YAML 1.1 wants written as 1.0e-3.
    """
    if not isinstance(given, str):
        return given
    if "," in given and not given.lstrip().startswith(("[", "{")):
        return tuple(_value(part.strip()) for part in given.split(",") if part.strip())
    if EXPONENTIAL.fullmatch(given.strip()):
        return float(given)
    try:
        return yaml.safe_load(given)
    except yaml.YAMLError:
        return given


METHODS = peft_methods()
"""Everything that `--method` takes: PEFT's own, vitune's, and those registered from outside."""

OUTSIDE: dict[str, Method] = {}
"""Methods that were registered from outside vitune, by name."""
