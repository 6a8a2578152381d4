"""The full record of a run's settings: written to config.yaml before the first step, read to
resume.

config.yaml holds the settings with every default filled in (`lr: 0.03`, not `null`), then
`resolved`, everything that follows from them, and `starts`, the software of the first start and of
every resumption. A resumed run is built from this record alone; its checksum reveals edits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from peft import PeftConfig
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.optim import Optimizer

from vitune.data import Augment, UsedImages
from vitune.environment import Environment
from vitune.errors import AdapterError, explain
from vitune.files import write_atomic
from vitune.preprocessing import Preprocessing
from vitune.seals import SEAL, is_edited, sealed, values_sha256
from vitune.training.train_config import IDENTITY, TrainConfig, settings_in

SETTLED_BY_RESUME = ("epochs", "data")
"""Settings that a resumed run may change: images may have moved, as they are known by content."""

PLAIN = (bool, int, float, str, type(None))


class Resolved(BaseModel):
    """What the settings of a run resolve to on this machine, with this backbone and this release.

    Args:
        method: PEFT's configuration of the adapter, every argument of the method with its value.
        objective: every argument of the training loss with its value.
        fingerprint: of the frozen weights that the adapter touches.
        optimiser: its class under "name", and its settings besides rates and weight decay.
        threads: CPU threads; their number changes the order of sums, and so the last digits.
        num_processes: each takes one batch per step.
        plugin: where a method from outside vitune came from; empty for all others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: dict[str, Any]
    objective: dict[str, Any]
    augmentation: Augment
    preprocessing: Preprocessing
    fingerprint: str
    optimiser: dict[str, Any]
    threads: int = Field(ge=1)
    num_processes: int = Field(ge=1)
    plugin: dict[str, str] = Field(default_factory=dict)

    def new_peft_config(self) -> PeftConfig:
        """The adapter's configuration."""
        return PeftConfig.from_peft_type(**self.method)


class Start(BaseModel):
    """One start of a run: after how many epochs, and with which software."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    after_epoch: int = Field(ge=0)
    environment: Environment


class _Beside(BaseModel):
    resolved: Resolved
    starts: tuple[Start, ...] = Field(min_length=1)


@dataclass(frozen=True)
class RunRecord:
    """A run as described by config.yaml.

    Args:
        identity: by which its checkpoints are known; empty in runs of older releases.
    """

    settings: TrainConfig
    resolved: Resolved
    starts: tuple[Start, ...]
    identity: str = ""

    def write(self, file: Path) -> None:
        """Write the record atomically."""
        values = {
            **self.settings.model_dump(mode="json"),
            "resolved": self.resolved.model_dump(mode="json"),
            "starts": [start.model_dump(mode="json") for start in self.starts],
            **({IDENTITY: self.identity} if self.identity else {}),
        }
        text = yaml.safe_dump(sealed(values), sort_keys=False, default_flow_style=None)
        write_atomic(file, text)

    @classmethod
    def parse(cls, values: Mapping[str, Any], file: Path) -> RunRecord:
        """The record from the values of `file`.

        Raises:
            AdapterError: an entry is missing, unknown or out of range; the text names it.
        """
        if "resolved" not in values:
            raise AdapterError(
                f"{file}: got a run of an older vitune, which did not record all of its "
                "settings, expected 'resolved:'. Start a new run; this one can still be used, "
                "but not resumed."
            )
        settings = settings_in(values, file)
        beside = {name: values.get(name) for name in ("resolved", "starts")}
        try:
            found = _Beside.model_validate(beside)
        except ValidationError as error:
            raise AdapterError(
                f"{file}: {explain(error)} Put the file back as training wrote it."
            ) from None
        if SEAL not in values or is_edited(values):
            raise AdapterError(
                f"{file}: got values that were edited after training wrote them, expected the "
                "original ones. "
                "Put the file back, or start a new run with --config and the edited file."
            )
        return cls(settings, found.resolved, found.starts, str(values.get(IDENTITY, "")))


def identity_of(settings: TrainConfig, resolved: Resolved, images: UsedImages) -> str:
    """64 hex digits of what a run's weights follow from, but for the number of epochs.

    It is computed once, when the run begins, and kept: a later release has other settings.
    """
    values = settings.model_dump(mode="json", exclude=set(SETTLED_BY_RESUME))
    fixed = {"resolved": resolved.model_dump(mode="json"), "images": images.identity}
    return values_sha256({**values, **fixed})


def plain_config(config: PeftConfig) -> dict[str, Any]:
    """A PEFT configuration as the values that adapter_config.json holds: sets as sorted lists."""
    values: dict[str, Any] = _plain(config.to_dict())
    return values


def plain_fields(record: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain values, those that its constructor takes."""
    taken = {name for name, entry in record.__dataclass_fields__.items() if entry.init}
    return {name: _plain(value) for name, value in asdict(record).items() if name in taken}


def plain_optimiser(optimiser: Optimizer) -> dict[str, Any]:
    """An optimiser's class and its settings, besides those in TrainConfig."""
    set_to = {k: _plain(v) for k, v in optimiser.defaults.items() if k not in OF_SETTINGS}
    return {"name": type(optimiser).__name__, **set_to}


def set_optimiser(optimiser: Optimizer, recorded: Mapping[str, Any]) -> None:
    """Restore an optimiser's settings from `plain_optimiser`.

    Raises:
        AdapterError: it is of another class.
    """
    name = type(optimiser).__name__
    if name != recorded.get("name"):
        raise AdapterError(
            f"--resume: got optimiser {name!r}, expected {recorded.get('name')!r}, with which "
            "the run was started. Resume with the release that started it."
        )
    for key, value in recorded.items():
        for group in optimiser.param_groups:
            if key in group and key not in OF_SETTINGS:
                group[key] = tuple(value) if isinstance(value, list) else value


OF_SETTINGS = ("lr", "weight_decay")
"""The optimiser's settings, group by group."""


def _plain(value: Any) -> Any:
    """`value` as YAML and JSON types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(entry) for entry in value)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "value"):  # an enumeration
        return _plain(value.value)
    if isinstance(value, PLAIN):
        return value
    return str(value)
