"""A run's summary: the typed content of its summary.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from vitune.result_files import Record


@dataclass(frozen=True)
class Reported:
    """Which epoch's weights the run keeps ("last" or "best" on validation), and its score.

    Args:
        averaged: whether they are the averages over about that epoch's steps.
    """

    which: str | None = None
    epoch: int | None = None
    val_accuracy: float | None = None
    averaged: bool = False

    @property
    def is_start(self) -> bool:
        """Whether validation kept nothing of what training changed: the weights are the probe's."""
        return self.which == "auto" and self.epoch == 0


@dataclass(frozen=True)
class PrivacySpent:
    """The differential privacy of a run: (epsilon, delta), and what they follow from.

    They concern this one run. Trial runs, for a learning rate for example, spent a budget of their
    own.
    """

    epsilon: float
    delta: float
    sample_rate: float
    steps: int
    noise_multiplier: float
    clip: float

    @classmethod
    def of(cls, record: Record) -> PrivacySpent:
        """From its mapping in summary.json."""
        names = ("epsilon", "delta", "sample_rate", "noise_multiplier", "clip")
        values = {name: record.number(name) or 0.0 for name in names}
        return cls(steps=record.whole("steps") or 0, **values)


@dataclass(frozen=True)
class TrainedPart:
    """The trained parameters of one role: on how many modules, how many in total."""

    role: str
    num_modules: int | None
    num_parameters: int


@dataclass(frozen=True)
class Oddity:
    """A remark on the images; `names` are the first of `num`."""

    text: str
    is_fault: bool
    num: int
    names: tuple[str, ...]
    kind: str | None = None


@dataclass(frozen=True)
class Calibration:
    """How well confidence is calibrated on validation.

    Args:
        temperature: what logits are divided by before they become probabilities.
        val_ece, val_ece_tempered: expected calibration error without and with it, in [0, 1]; None
            without validation images.
        val_ece_by_chance: what `val_ece_tempered` would be if all confidences were true; None also
            in runs of earlier releases.
    """

    temperature: float = 1.0
    val_ece: float | None = None
    val_ece_tempered: float | None = None
    val_ece_by_chance: float | None = None

    @classmethod
    def of(cls, record: Record) -> Calibration:
        """From its mapping in summary.json."""
        temperature = record.number("temperature")
        return cls(
            1.0 if temperature is None else temperature,
            record.share("val_ece"),
            record.share("val_ece_tempered"),
            record.share("val_ece_by_chance"),
        )


@dataclass(frozen=True)
class SolvedFacts:
    """How a head was solved on frozen features, and how good it is.

    Args:
        val_accuracy, val_loss: on validation; None without one.
        chosen: its settings by name.
        how: the data they were chosen on.
        copies: the views of each training image: "none", or "flip" with mirrored ones.
        mirror_gain: by how much mirrored copies lower validation cross-entropy, and the standard
            error of that; None if not tried.
        seconds: features and solution together.
        lookalikes: the share of validation images that look almost like a training image, and the
            first of their names.
    """

    val_accuracy: float | None = None
    val_loss: float | None = None
    chosen: dict[str, float] = field(default_factory=dict)
    how: str = ""
    copies: str = "none"
    temperature: float = 1.0
    mirror_gain: tuple[float, float] | None = None
    seconds: float | None = None
    lookalikes: tuple[float, tuple[str, ...]] = (0.0, ())

    @classmethod
    def of(cls, record: Record) -> SolvedFacts:
        """From its mapping in summary.json or probe.json."""
        chosen = record.inner("chosen")
        values = {name: chosen.number(name) for name in chosen.values}
        gains = {f"mirror_gain[{i}]": v for i, v in enumerate(record.listing("mirror_gain"))}
        listed = replace(record, values=gains)
        gain = [listed.number(name) for name in gains]
        return cls(
            record.share("val_accuracy"),
            record.number("val_loss"),
            {name: value for name, value in values.items() if value is not None},
            record.text("how") or "",
            record.text("copies") or "none",
            record.number("temperature") or 1.0,
            (gain[0] or 0.0, gain[1] or 0.0) if len(gain) == 2 else None,
            record.number("seconds"),
            _lookalikes(record),
        )


def _lookalikes(record: Record) -> tuple[float, tuple[str, ...]]:
    """The share and the names; absent in runs of earlier releases."""
    share, names = ([*record.listing("lookalikes"), 0.0, []])[:2]
    is_sound = isinstance(share, int | float) and isinstance(names, list)
    return (float(share), tuple(map(str, names))) if is_sound else (0.0, ())


@dataclass(frozen=True)
class Verdict:
    """Adapted network and solved probe on the same validation images.

    Args:
        adapted, probe: validation accuracy, in [0, 1].
        gain, gain_error: adapted - probe, and the standard error of that, image by image; None
            for a single image.
        loss_gain, loss_gain_error: by how much calibrated cross-entropy fell, and its error.
        num_images: number of images for both.
    """

    adapted: float
    probe: float
    gain: float
    gain_error: float | None
    loss_gain: float
    loss_gain_error: float | None
    num_images: int

    @property
    def paid(self) -> bool:
        """Whether to prefer the adapted network: it is better by more than one standard error, in
        accuracy or, where accuracies are closer than that, in cross-entropy."""
        return self.gain > 0 if self.is_clear else self.loss_is_clear and self.loss_gain > 0

    @property
    def is_clear(self) -> bool:
        """Whether accuracies differ by more than one standard error of the difference."""
        return _exceeds(self.gain, self.gain_error)

    @property
    def loss_is_clear(self) -> bool:
        """Whether cross-entropies differ by more than one standard error of the difference."""
        return _exceeds(self.loss_gain, self.loss_gain_error)

    @property
    def probe_is_better(self) -> bool:
        """Whether to prefer the probe: in all other cases, unless the network is the probe."""
        return not self.paid and (self.gain, self.loss_gain) != (0, 0)

    def as_dict(self) -> dict[str, Any]:
        """For summary.json."""
        return {**asdict(self), "paid": self.paid, "probe_is_better": self.probe_is_better}

    @classmethod
    def of(cls, record: Record) -> Verdict:
        """From its mapping in summary.json."""
        for name in ("adapted", "probe", "gain", "loss_gain", "num_images"):
            record.needed(name)
        return cls(
            record.share("adapted") or 0.0,
            record.share("probe") or 0.0,
            record.number("gain") or 0.0,
            record.number("gain_error"),
            record.number("loss_gain") or 0.0,
            record.number("loss_gain_error"),
            record.whole("num_images") or 0,
        )


def _exceeds(difference: float, error: float | None) -> bool:
    return error is not None and abs(difference) > error


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run's settings, size and outcome: summary.json, also returned by `fit`.

    Everything but the method may be None if it is not known yet or was not written by an older
    version. Keys of newer versions are skipped.

    Args:
        num_trainable: with the head; `num_total` is the whole network without what was added.
        val_groups: of how many groups the validation images are; None if groups are unknown.
        held_out: how validation was split from training, in words.
        head_lr: the classifier's own learning rate; None if it is `lr`.
        start: where training started: "probe", or "plain" for a new classifier.
        notice: a notice about the method on this backbone.
        backbone_notice, scarcity_notice: notices about a backbone chosen by default, and about
            classes with a single image.
        share: position of the weights on the line from the solved probe (0) to the trained ones
            (1); None if not tried.
        probe: the solved probe that the run started from or is compared with.
        solved: how the head was found, if the method takes no gradient steps.
        chosen: "probe" if it replaced the adapted network; then `asked` is the method that was
            trained.
        cores_of_others: processor cores that other programs kept busy meanwhile.
        peak_mib: peak memory, of the GPU if there is one.
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
    val_groups: int | None = None
    num_classes: int | None = None
    held_out: str | None = None
    batch_size: int | None = None
    skipped_images: int | None = None
    remarks: tuple[Oddity, ...] = ()
    lr: float | None = None
    head_lr: float | None = None
    start: str | None = None
    weight_decay: float | None = None
    precision: str | None = None
    speed: str | None = None
    tokens: str | None = None
    device: str | None = None
    num_processes: int | None = None
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notice: str | None = None
    backbone_notice: str | None = None
    scarcity_notice: str | None = None
    reported: Reported = Reported()
    share: float | None = None
    calibration: Calibration | None = None
    probe: SolvedFacts | None = None
    verdict: Verdict | None = None
    solved: SolvedFacts | None = None
    chosen: str | None = None
    asked: str | None = None
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
    privacy: PrivacySpent | None = None

    @classmethod
    def of(cls, record: Record) -> RunSummary:
        """The summary in a mapping of a result file.

        Raises:
            VituneError: no method, or a value of the wrong type; the text names the key.
        """
        record.needed("method")
        reported = record.inner("reported")
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
                averaged=bool(reported.flag("averaged")),
            ),
            trained_parts=tuple(_trained_part(part) for part in record.records("trained_parts")),
            calibration=_part(Calibration, record, "calibration"),
            probe=_part(SolvedFacts, record, "probe"),
            verdict=_part(Verdict, record, "verdict"),
            solved=_part(SolvedFacts, record, "solved"),
            privacy=_part(PrivacySpent, record, "privacy"),
        )

    def as_dict(self) -> dict[str, Any]:
        """The summary as summary.json holds it."""
        parts = [
            {"role": part.role, "count": part.num_modules, "parameters": part.num_parameters}
            for part in self.trained_parts
        ]
        verdict = None if self.verdict is None else self.verdict.as_dict()
        return {**asdict(self), "trained_parts": parts, "verdict": verdict}


_READERS: dict[Any, str] = {
    "str": "text",
    "str | None": "text",
    "int | None": "whole",
    "float | None": "number",
    "bool | None": "flag",
}
"""How a field is read, by its annotation."""


def _oddities(record: Record) -> tuple[Oddity, ...]:
    """The remarks; for older runs without any, how many images were skipped."""
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


def _part(kind: Any, record: Record, key: str) -> Any:
    """One of the parts above; None where the run has none."""
    inner = record.inner(key)
    return kind.of(inner) if inner.values else None
