"""The unit of a study: one run with one setting and seed, and its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from vitune.bench.study.addressing import address_of, deciding
from vitune.bench.study.plan import Keepable
from vitune.bench.study.recipe import OfficialRecipe
from vitune.errors import VituneError, explain, one_line
from vitune.seals import SEAL, is_edited, sealed
from vitune.training import TrainConfig

FORMAT = 2
READABLE = (1, 2)
"""Formats that tables can show; in format 1 addresses cover neither stage nor every file."""

Stage = Literal["select", "final"]
Status = Literal["done", "diverged", "failed"]


@dataclass(frozen=True)
class Cell:
    """One run of a study: everything a worker needs.

    Args:
        stage: "select" trains on training and scores validation; "final" is reported.
        label, task, group: for display; not part of the address.
        config: of the run.
        setting: the part of it that comes from the grid.
        scored_on: "val" or "test".
        split_hashes: for each split that is trained on or scored, a hash of its files and labels in
            order; the test split's is computed without decoding an image.
        fingerprint: of the backbone's weights, as adapters record it.
        identity: of every weight of the backbone, its preprocessing and configuration.
        source: hash of all files of the data source; not part of the address.
        split_seed: determines the hold-out.
        val: validation accuracy with which stage 1 chose the setting; None if nothing was chosen.
        retention: whether to measure how much of the base was kept.
        recipe: deviations of the as-published protocol; empty under the honest one.
        allow_overlap: score a split that shares images with training, with and without them.
        keep: what else to keep of the run; not part of the address.
        fresh: whether to repeat a run made by another version or device.
    """

    stage: Stage
    label: str
    task: str
    group: str | None
    config: TrainConfig
    setting: Mapping[str, Any]
    scored_on: Literal["val", "test"]
    split_hashes: Mapping[str, str]
    fingerprint: str
    identity: str
    source: str = ""
    split_seed: int = 0
    val: float | None = None
    retention: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)
    allow_overlap: bool = False
    keep: tuple[Keepable, ...] = ()
    fresh: bool = False

    @property
    def protocol(self) -> str:
        """The protocol's name."""
        return "as-published" if self.recipe else "honest"

    @property
    def address(self) -> str:
        """32 hex digits over all that affects the result; see `vitune.bench.study.addressing`."""
        return address_of(
            stage=self.stage,
            config=deciding(self.config.model_dump(mode="json")),
            scored_on=self.scored_on,
            splits=dict(self.split_hashes),
            identity=self.identity,
            retention=self.retention,
            recipe=self._deviations(),
        )

    def _deviations(self) -> dict[str, Any] | None:
        """The recipe's deviations from vitune; None under the honest protocol."""
        if not self.recipe:
            return None
        return OfficialRecipe.make(self.recipe).model_dump(mode="json", exclude_defaults=True)

    def __str__(self) -> str:
        setting = " ".join(f"{key}={_short(value)}" for key, value in self.setting.items())
        return " ".join(
            filter(None, [self.stage, self.label, self.task, setting, f"seed={self.config.seed}"])
        )


@dataclass(frozen=True)
class Scores:
    """The scores of a network on one split.

    Args:
        split: "val" or "test".
        num_images: of the split.
        top1: accuracy in [0, 1].
        nll: mean negative log likelihood, nats.
        ece: expected calibration error over 15 bins, in [0, 1].
        correct: which images were right, one bit per image in the split's order, as hex digits.
        groups: which images are of one group, in the same order (`packed_groups`); None if groups
            are unknown.
    """

    split: str
    num_images: int
    top1: float
    nll: float
    ece: float
    correct: str = ""
    groups: str | None = None


@dataclass(frozen=True)
class CellResult:
    """The content of a cell's file.

    Args:
        status: "done"; "diverged" (the loss became non-finite: a result, not an accident); or
            "failed", which the next run of the study retries.
        error: why it is not done.
        val: validation accuracy: of this run in stage "select", of stage 1 in stage "final".
        scores: on the reported split; None in stage "select".
        seconds: of training.
        cpu_seconds: processor time of training on a CPU, which other programs do not lengthen.
        peak_mib: of training.
        counts: parameters: trainable, without_head, head, total.
        retention: mean and last block's CKA with the base, on the reported images.
        published: the as-published protocol's scores on the test split, epoch by epoch.
        weight_files: content hash by name of the local files that the backbone was read from.
        unshared: scores without the images shared with training; None if there are none.
        notes: deviations from the requested settings, one sentence each.
        adapter: sha256 of the kept adapter's weights; None if none was kept, and in older results.
        speed: the preset of --speed; None in older results, which are "exact".
        curve: after every epoch, seconds of training steps so far, the same in processor time, and
            validation accuracy, None without a validation split.
    """

    address: str
    stage: str
    label: str
    task: str
    group: str | None
    protocol: str
    config: dict[str, Any]
    setting: dict[str, Any]
    seed: int
    scored_on: str
    split_hashes: dict[str, str]
    fingerprint: str
    status: Status
    error: str | None = None
    val: float | None = None
    scores: Scores | None = None
    seconds: float | None = None
    peak_mib: float | None = None
    counts: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    retention: dict[str, Any] | None = None
    published: dict[str, Any] | None = None
    unshared: Scores | None = None
    identity: str = ""
    weight_files: dict[str, str] = field(default_factory=dict)
    source: str = ""
    device: str | None = None
    precision: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    finished: str | None = None
    format: int = FORMAT
    cpu_seconds: float | None = None
    curve: tuple[tuple[float, float, float | None], ...] = ()
    speed: str | None = None
    adapter: str | None = None

    @property
    def is_settled(self) -> bool:
        """Whether running the cell again would change nothing."""
        return self.status in ("done", "diverged")

    @property
    def device_kind(self) -> str | None:
        """The device without the number of threads; None if nothing ran."""
        return None if self.device is None else self.device.partition(" (")[0]

    def for_cell(self, cell: Cell) -> CellResult:
        """The same result under the names in the present study."""
        val = cell.val if cell.stage == "final" else self.val
        return replace(
            self,
            stage=cell.stage,
            label=cell.label,
            task=cell.task,
            group=cell.group,
            setting=dict(cell.setting),
            val=val,
        )

    def to_json(self) -> str:
        """The result as JSON text."""
        return json.dumps(sealed(asdict(self)), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CellResult:
        """The result in JSON text.

        Raises:
            VituneError: the text is not a result, or no longer the one that was written.
        """
        try:
            values = json.loads(text)
            if values["format"] not in READABLE:
                raise VituneError(
                    f"cell: got format {values['format']!r}, expected one of {READABLE}."
                )
            if is_edited(values):
                raise VituneError(
                    "cell: got values that were edited after the run, expected the original ones."
                )
            values.pop(SEAL, None)
            for name in ("scores", "unshared"):
                given = values.get(name)
                values[name] = Scores(**given) if given else None
            made = cls(**values | {"notes": tuple(values["notes"])})
            return _checked_type().validate_python(asdict(made))
        except ValidationError as error:
            raise _damaged(explain(error)) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, VituneError):
                raise
            raise _damaged(one_line(error)) from error


@cache
def _checked_type() -> TypeAdapter[CellResult]:
    return TypeAdapter(CellResult)


def _damaged(what: str) -> VituneError:
    return VituneError(f"cell: got a damaged file ({what}), expected a result.")


def blank_result(cell: Cell, status: Status, **values: Any) -> CellResult:
    """A result with everything known from the cell itself."""
    return CellResult(
        address=cell.address,
        stage=cell.stage,
        label=cell.label,
        task=cell.task,
        group=cell.group,
        protocol=cell.protocol,
        config=cell.config.model_dump(mode="json"),
        setting=dict(cell.setting),
        seed=cell.config.seed,
        scored_on=cell.scored_on,
        split_hashes=dict(cell.split_hashes),
        fingerprint=cell.fingerprint,
        identity=cell.identity,
        source=cell.source,
        status=status,
        **{"val": cell.val, **values},
    )


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
