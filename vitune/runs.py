"""The run folder: its files, who may write into it, and how it is read; a run's summary."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from vitune.errors import AdapterError
from vitune.files import check_new_folder, is_part, recover_folder, sweep, write_atomic
from vitune.processes import locked
from vitune.result_files import Record, as_record, read_json

LOCK = ".lock"


@dataclass(frozen=True)
class Reported:
    """Which epoch's weights the run keeps ("last" or "best" on validation), and its score."""

    which: str | None = None
    epoch: int | None = None
    val_accuracy: float | None = None


@dataclass(frozen=True)
class TrainedPart:
    """The trained parameters of one role: on how many modules, how many in all."""

    role: str
    num_modules: int | None
    num_parameters: int


@dataclass(frozen=True)
class Oddity:
    """What was odd about the images; `names` are the first of `num`."""

    text: str
    is_fault: bool
    num: int
    names: tuple[str, ...]
    kind: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run was, how large, and what came out: summary.json, and what `fit` returns of it.

    Everything but the method may be None: it is not known yet, or of an older run that did not
    write it. Keys of newer runs are passed over.

    Args:
        num_trainable: with the head; `num_total` is the whole network without what was added.
        held_out: how validation was cut from training, in words.
        notice: what to know of the method on this backbone.
        cores_of_others: processor cores that other programs kept busy meanwhile.
        peak_mib: memory, of the GPU where there is one.
        finished: when, ISO 8601.
    """

    method: str
    method_title: str | None = None
    source: str | None = None
    backbone: str | None = None
    num_trainable: int | None = None
    num_trainable_without_head: int | None = None
    num_head: int | None = None
    num_total: int | None = None
    mergeable: bool | None = None
    data: str | None = None
    num_train: int | None = None
    num_val: int | None = None
    num_classes: int | None = None
    held_out: str | None = None
    batch_size: int | None = None
    skipped_images: int | None = None
    remarks: tuple[Oddity, ...] = ()
    lr: float | None = None
    weight_decay: float | None = None
    precision: str | None = None
    speed: str | None = None
    tokens: str | None = None
    device: str | None = None
    num_processes: int | None = None
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notice: str | None = None
    reported: Reported = Reported()
    best_epoch: int | None = None
    epochs: int | None = None
    steps: int | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    cores_of_others: float | None = None
    peak_mib: float | None = None
    finished: str | None = None
    status: str | None = None
    trained_parts: tuple[TrainedPart, ...] = ()
    adapter_bytes: int | None = None
    fingerprint: str | None = None

    @classmethod
    def of(cls, record: Record) -> RunSummary:
        """The summary in a mapping of a result file.

        Raises:
            VituneError: no method, or a value of the wrong kind; the text names the key.
        """
        record.needed("method")
        reported = as_record(record.mapping("reported"), f"{record.where}: reported")
        plain = {
            item.name: getattr(record, _READERS[item.type])(item.name)
            for item in fields(cls)
            if item.type in _READERS
        }
        versions = record.mapping("versions")
        return cls(
            **plain,
            remarks=_oddities(record),
            versions={str(name): str(version) for name, version in versions.items()},
            reported=Reported(
                which=reported.text("which"),
                epoch=reported.whole("epoch"),
                val_accuracy=reported.share("val_accuracy"),
            ),
            trained_parts=tuple(_trained_part(part) for part in record.records("trained_parts")),
        )

    def as_dict(self) -> dict[str, Any]:
        """The summary as summary.json holds it."""
        parts = [
            {"role": part.role, "count": part.num_modules, "parameters": part.num_parameters}
            for part in self.trained_parts
        ]
        return {**asdict(self), "trained_parts": parts}


_READERS: dict[Any, str] = {
    "str": "text",
    "str | None": "text",
    "int | None": "whole",
    "float | None": "number",
    "bool | None": "flag",
}
"""How a field is read, by its annotation."""


def _oddities(record: Record) -> tuple[Oddity, ...]:
    """The remarks; of a run before there were any, how many images were skipped."""
    count = record.whole("skipped_images") or 0
    if count and "remarks" not in record.values:
        images = "image" if count == 1 else "images"
        return (Oddity(f"{count} unreadable {images} skipped", True, count, ()),)
    return tuple(
        Oddity(
            text=str(remark.needed("text")),
            is_fault=bool(remark.flag("is_fault")),
            num=remark.whole("num") or 0,
            names=tuple(str(name) for name in remark.listing("names")),
            kind=remark.text("kind"),
        )
        for remark in record.records("remarks")
    )


def _trained_part(part: Record) -> TrainedPart:
    return TrainedPart(
        role=str(part.needed("role")),
        num_modules=part.whole("count"),
        num_parameters=part.whole("parameters") or 0,
    )


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder.

    config.yaml     every value that affects the result, and what computed it
    images.npz      which images trained and which were watched, by content
    metrics.jsonl   one line per epoch
    adapter/        PEFT's files and vitune.json
    checkpoint/     what --resume continues from
    snapshots/      epoch-000/, epoch-005/, ...: adapters along training, where asked for
    summary.json    what came out
    exits/          early exits: heads, thresholds, certificate; where there are any
    evaluation/     one file per evaluated data set
    report.html     all of it for a reader
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def images(self) -> Path:
        return self.path / "images.npz"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    def snapshot(self, epoch: int) -> Path:
        """Where the adapter after so many epochs is kept; 0 is before the first step."""
        return self.path / "snapshots" / f"epoch-{epoch:03d}"

    def snapshots(self) -> dict[int, Path]:
        """The kept adapters by epoch, rising; empty where none were asked for."""
        found = (self.path / "snapshots").glob("epoch-*")
        epochs = {path.name.removeprefix("epoch-"): path for path in found}
        return {int(n): epochs[n] for n in sorted(filter(str.isdigit, epochs), key=int)}

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluation"

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """The run at `path` that --resume is to continue.

        Raises:
            AdapterError: there is none.
        """
        folder = cls(Path(path))
        if not folder.config.is_file():
            raise AdapterError(
                f"--resume: got {str(path)!r} without config.yaml, expected a run folder."
            )
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The finished or stopped run at `path`.

        Raises:
            AdapterError: there is no run folder, or it holds no adapter yet.
        """
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise AdapterError(f"run: got {str(path)!r}, expected an existing run folder.")
        recover_folder(folder.adapter)
        if not folder.adapter.is_dir():
            hint = "Finish it with --resume." if folder.config.is_file() else "Is it a run?"
            raise AdapterError(f"run: got {str(path)!r} without an adapter. {hint}")
        return folder

    def check_new(self) -> None:
        """See that a run may begin here: there is nothing, or only what a dead start left.

        Raises:
            OutputError: the folder holds something.
        """
        if not self.path.is_dir() or any(not _is_left_over(name) for name in os.listdir(self.path)):
            hint = "Continue it with --resume, or choose another name."
            check_new_folder(self.path, hint=hint)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Within: the folder exists and is this process's alone to write a new run into.

        Raises:
            OutputError: it holds something, or another process writes to it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.held():
            self.check_new()
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within: no other training run writes to the folder; parts of dead writers are gone.

        Raises:
            OutputError: another process writes to it.
        """
        with locked(self.path / LOCK, f"run folder {str(self.path)!r}"):
            for folder in (self.path, self.evaluations, self.path / "analysis"):
                sweep(folder)
            yield

    def forget(self) -> None:
        """Remove a run that has come to nothing; files that are not of its start are kept."""
        for file in (self.metrics, self.images, self.config, self.path / LOCK):
            file.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    def read_config(self) -> dict[str, Any]:
        """The settings of the run.

        Raises:
            AdapterError: config.yaml is missing or no YAML mapping.
        """
        try:
            values = yaml.safe_load(self.config.read_text())
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise AdapterError(
                f"{self.config}: got {reason!r}, expected the YAML that training wrote. "
                "Put a whole copy in its place."
            ) from None
        if not isinstance(values, dict):
            raise AdapterError(f"{self.config}: got no mapping, expected 'name: value' lines.")
        return values

    def read_data(self) -> str:
        """The data source of the run.

        Raises:
            AdapterError: config.yaml does not say.
        """
        data = self.read_config().get("data")
        if not isinstance(data, str):
            raise AdapterError(f"{self.config}: data: got {data!r}, expected a data source.")
        return data

    def read_summary(self) -> RunSummary | None:
        """What came out of the run; None while it is not finished.

        Raises:
            VituneError: summary.json is not what training writes; the text names line or key.
        """
        if not self.summary.is_file():
            return None
        where = str(self.summary)
        return RunSummary.of(as_record(read_json(self.summary, where), where))

    def write_summary(self, summary: RunSummary) -> None:
        """Write summary.json, whole or not at all."""
        write_atomic(self.summary, json.dumps(summary.as_dict(), indent=2) + "\n")


def _is_left_over(name: str) -> bool:
    """Whether a start that died before it wrote config.yaml may have left a file of this name."""
    return name == LOCK or is_part(name)
