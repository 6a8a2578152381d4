"""The files of a run's evaluation/ folder: one scored set of images each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vitune.errors import VituneError
from vitune.report.exits import ExitScores, read_exits
from vitune.report.intervals import wilson_interval
from vitune.report.reading import Record, as_record, read_json, visible_files, whole_numbers

PICTURE = re.compile(r"data:image/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True)
class ClassScore:
    """How one class fared; shares in [0, 1]."""

    name: str
    num_images: int
    precision: float | None
    recall: float | None
    f1: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the recall, which is a share of `num_images`."""
        if self.recall is None or self.num_images == 0:
            return None
        return wilson_interval(self.recall, self.num_images)


@dataclass(frozen=True)
class CalibrationBin:
    """Images of similar confidence: its mean, how many were right, their share of all images."""

    confidence: float
    accuracy: float
    share: float


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for another class; `thumbnail` is a data URI or None."""

    path: str
    label: str
    predicted: str
    confidence: float | None
    thumbnail: str | None


@dataclass(frozen=True)
class Evaluation:
    """One file of evaluation/: scores in [0, 1], `confusion` counts true x predicted."""

    name: str
    data: str | None
    num_images: int
    top1: float
    top5: float | None
    nll: float | None
    ece: float | None
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    per_class: tuple[ClassScore, ...]
    calibration: tuple[CalibrationBin, ...]
    mistakes: tuple[Mistake, ...]
    exits: ExitScores | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `top1` on `num_images` images."""
        return wilson_interval(self.top1, self.num_images)


def read_evaluations(folder: Path) -> tuple[Evaluation, ...]:
    """The evaluations of a folder, test sets before validation; none where the folder is absent.

    Raises:
        VituneError: a file that is not what it should be.
    """
    found = [_evaluation(path) for path in visible_files(folder, ".json")]
    return tuple(sorted(found, key=_standing))


def _standing(evaluation: Evaluation) -> tuple[int, int, str]:
    """Test sets first, of these the one called just "test", then by name."""
    name = evaluation.name
    return _openness(name), name != "test", name


def _openness(name: str) -> int:
    """0 for a test set (the score to tell), 3 for images that training saw."""
    lowered = name.lower()
    if "test" in lowered:
        return 0
    words = set(re.split(r"[^a-z]+", lowered))
    if words & {"train", "training"}:
        return 3
    return 2 if words & {"val", "valid", "validation"} else 1


def is_validation(evaluation: Evaluation) -> bool:
    """Whether the images are the validation split, by the evaluation's name."""
    return _openness(evaluation.name) == 2


def _evaluation(path: Path) -> Evaluation:
    record = as_record(read_json(path, str(path)), str(path))
    record.needed("top1")
    record.needed("num_images")
    num_images = record.whole("num_images") or 0
    if num_images == 0:
        raise VituneError(f"{path}: num_images: got 0, expected at least 1.")
    classes = tuple(str(name) for name in record.listing("classes"))
    return Evaluation(
        name=record.text("name") or path.stem,
        data=record.text("data"),
        num_images=num_images,
        top1=record.share("top1") or 0.0,
        top5=record.share("top5"),
        nll=record.number("nll"),
        ece=record.share("ece"),
        classes=classes,
        confusion=_confusion(record, len(classes)),
        per_class=tuple(_class_score(entry) for entry in record.records("per_class")),
        calibration=tuple(_bins(record)),
        mistakes=tuple(_mistake(entry) for entry in record.records("mistakes")),
        exits=read_exits(record, _mistake),
    )


def _confusion(record: Record, num_classes: int) -> tuple[tuple[int, ...], ...]:
    lines = record.listing("confusion")
    if not lines:
        return ()
    where = f"{record.where}: confusion"
    if len(lines) != num_classes:
        raise VituneError(f"{where}: got {len(lines)} lists, expected {num_classes}, one a class.")
    return tuple(
        whole_numbers(line, f"{where}[{index}]", num_classes) for index, line in enumerate(lines)
    )


def _class_score(record: Record) -> ClassScore:
    return ClassScore(
        name=str(record.needed("name")),
        num_images=record.whole("num_images") or 0,
        precision=record.share("precision"),
        recall=record.share("recall"),
        f1=record.share("f1"),
    )


def _bins(record: Record) -> list[CalibrationBin]:
    """The bins that hold images."""
    bins = []
    for entry in record.records("calibration"):
        confidence, accuracy = entry.share("confidence"), entry.share("accuracy")
        share = entry.share("share")
        if confidence is not None and accuracy is not None and share:
            bins.append(CalibrationBin(confidence, accuracy, share))
    return bins


def _mistake(record: Record) -> Mistake:
    thumbnail = record.text("thumbnail")
    if thumbnail is not None and not PICTURE.fullmatch(thumbnail):
        raise VituneError(
            f"{record.where}: thumbnail: got {thumbnail[:40]!r}, expected a data URI of a PNG, "
            "JPEG, WebP or GIF picture."
        )
    return Mistake(
        path=str(record.needed("path")),
        label=str(record.needed("label")),
        predicted=str(record.needed("predicted")),
        confidence=record.share("confidence"),
        thumbnail=thumbnail,
    )
