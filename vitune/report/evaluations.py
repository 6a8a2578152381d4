"""The files of a run's evaluation/ folder: one scored set of images each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vitune.errors import VituneError
from vitune.report.exit_results import ExitScores, read_exits
from vitune.report.formatting import counted
from vitune.report.intervals import wilson_interval
from vitune.result_files import Record, as_record, sealed_record, visible_files, whole_numbers

OUTDATED = "Earlier weights were scored: the run was continued since. Evaluate it again."

PICTURE = re.compile(r"data:image/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class; shares in [0, 1].

    Args:
        effective_images: how many independent images say as much; None if groups are unknown.
    """

    name: str
    num_images: int
    precision: float | None
    recall: float | None
    f1: float | None
    effective_images: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the recall, which is a share of `num_images`."""
        if self.recall is None or self.num_images == 0:
            return None
        return wilson_interval(self.recall, self.effective_images or self.num_images)


@dataclass(frozen=True)
class CalibrationBin:
    """Images of similar confidence: its mean, how many were right, their share of all images."""

    confidence: float
    accuracy: float
    share: float


@dataclass(frozen=True)
class Mistake:
    """A misclassified image; `thumbnail` is a data URI or None."""

    path: str
    label: str
    predicted: str
    confidence: float | None
    thumbnail: str | None


@dataclass(frozen=True)
class ConfusionCounts:
    """A confusion matrix without its zeros: 5,000 classes have 25 million of them.

    Args:
        cells: (true class, predicted class, images), sorted, of the pairs that occur.
    """

    num_classes: int
    cells: tuple[tuple[int, int, int], ...]

    @cached_property
    def totals(self) -> tuple[int, ...]:
        """Images of each true class."""
        found = [0] * self.num_classes
        for true, _, number in self.cells:
            found[true] += number
        return tuple(found)

    @property
    def num_correct(self) -> int:
        """Images on the diagonal."""
        return sum(number for true, predicted, number in self.cells if true == predicted)


@dataclass(frozen=True)
class Evaluation:
    """One file of evaluation/: scores in [0, 1].

    Args:
        num_trained: scored images that were used for training.
        num_watched: scored images of the validation split.
        num_left_out: images that were not scored because they were used for training or validation.
        is_outdated: whether other weights were scored than the run has now.
        num_groups: of how many groups the images are; None if groups are unknown.
        effective_images: how many independent images say as much about `top1`; None likewise.
    """

    name: str
    data: str | None
    num_images: int
    top1: float
    top5: float | None
    nll: float | None
    ece: float | None
    ece_by_chance: float | None
    classes: tuple[str, ...]
    confusion: ConfusionCounts | None
    per_class: tuple[ClassScore, ...]
    calibration: tuple[CalibrationBin, ...]
    mistakes: tuple[Mistake, ...]
    num_trained: int = 0
    num_watched: int = 0
    num_left_out: int = 0
    exits: ExitScores | None = None
    is_outdated: bool = False
    num_groups: int | None = None
    effective_images: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `top1` on `num_images` images, or on as many as say as much."""
        return wilson_interval(self.top1, self.effective_images or self.num_images)

    @property
    def mean_per_class(self) -> float | None:
        """The mean recall of the classes that have images; None if there are none."""
        recalls = [e.recall for e in self.per_class if e.num_images and e.recall is not None]
        return sum(recalls) / len(recalls) if recalls else None

    @property
    def marks(self) -> list[str]:
        """Warnings about what the score does not mean, as sentences."""
        marks = [OUTDATED] if self.is_outdated else []
        marks += score_marks(self.num_images, self.num_trained, self.num_watched, self.num_left_out)
        if self.num_groups is not None and self.effective_images is not None:
            marks.append(group_mark(self.num_groups, self.effective_images))
        return marks


def score_marks(num_images: int, trained: int, watched: int, left_out: int) -> list[str]:
    """Warnings about what a score does not mean, as sentences.

    Args:
        num_images: number of scored images.
        trained, watched: how many of them are training images, and how many validation images.
        left_out: images that were not scored because they were used for training or, where no
            validation image was scored, for validation.
    """
    marks = []
    if trained:
        marks.append(
            f"{_part(trained, num_images)} were used for training: the score says nothing "
            "about new images."
        )
    if watched:
        marks.append(f"{_part(watched, num_images)} are the run's validation images.")
    if left_out:
        was, is_ = ("was", "is") if left_out == 1 else ("were", "are")
        purpose = "training" if watched else "training or validation"
        used = f"that {was} used for {purpose}"
        marks.append(f"{counted(left_out, 'image')} {used} {is_} left out.")
    return marks


def group_mark(num_groups: int, effective: float) -> str:
    """What images that belong together mean for the interval, as a sentence."""
    return (
        f"The images are of {counted(num_groups, 'group')}: the interval is that of "
        f"{counted(max(1, round(effective)), 'independent image')}."
    )


def _part(number: int, num_images: int) -> str:
    """This number of the scored images, in words."""
    return "These images" if number == num_images else f"{number:,} of these {num_images:,} images"


def read_evaluations(folder: Path, weights: str | None = None) -> tuple[Evaluation, ...]:
    """The evaluations in a folder, test sets before validation; none if there is no folder.

    Args:
        weights: digest of the run's weights; evaluations of others are out of date.

    Raises:
        VituneError: a file that is damaged.
    """
    found = [_evaluation(path, weights) for path in visible_files(folder, ".json")]
    return tuple(sorted(found, key=_standing))


def _standing(evaluation: Evaluation) -> tuple[int, int, str]:
    """Test sets first, of these the one called just "test", then by name."""
    name = evaluation.name
    return _openness(evaluation), name != "test", name


def _openness(evaluation: Evaluation) -> int:
    """0 for a test set (the score to report), 3 for images used in training, 4 if out of date."""
    if evaluation.is_outdated:
        return 4
    if evaluation.num_trained:
        return 3
    if evaluation.num_watched:
        return 2
    lowered = evaluation.name.lower()
    if "test" in lowered:
        return 0
    words = set(re.split(r"[^a-z]+", lowered))
    if words & {"train", "training"}:
        return 3
    return 2 if words & {"val", "valid", "validation"} else 1


def is_validation(evaluation: Evaluation) -> bool:
    """Whether the images are the validation split, by content or by the evaluation's name."""
    return _openness(evaluation) == 2


def is_test(evaluation: Evaluation) -> bool:
    """Whether the images are a test split by name, with none of them used for training."""
    return _openness(evaluation) == 0


def _evaluation(path: Path, weights: str | None) -> Evaluation:
    record = sealed_record(path)
    record.needed("top1")
    record.needed("num_images")
    num_images = record.whole("num_images") or 0
    if num_images == 0:
        raise VituneError(f"{path}: num_images: got 0, expected at least 1.")
    classes = tuple(str(name) for name in record.listing("classes"))
    scored = record.text("weights")
    return Evaluation(
        name=record.text("name") or path.stem,
        data=record.text("data"),
        num_images=num_images,
        top1=record.share("top1") or 0.0,
        top5=record.share("top5"),
        nll=record.number("nll"),
        ece=record.share("ece"),
        ece_by_chance=record.share("ece_by_chance"),
        classes=classes,
        confusion=_confusion(record, len(classes)),
        per_class=tuple(_class_score(entry) for entry in record.records("per_class")),
        calibration=tuple(_bins(record)),
        mistakes=tuple(_mistake(entry) for entry in record.records("mistakes")),
        num_trained=_number(record, "seen", "trained"),
        num_watched=_number(record, "seen", "watched"),
        num_left_out=_number(record, "left_out", "trained")
        + _number(record, "left_out", "watched"),
        exits=read_exits(record, _mistake),
        is_outdated=None not in (scored, weights) and scored != weights,
        num_groups=record.whole("num_groups"),
        effective_images=_positive(record, "effective_images"),
    )


def _positive(record: Record, name: str) -> float | None:
    """A number above 0, or None if it is absent."""
    found = record.number(name)
    if found is not None and found <= 0:
        raise VituneError(f"{record.where}: {name}: got {found}, expected a number above 0.")
    return found


def _number(record: Record, key: str, name: str) -> int:
    """`name` of the mapping `key`, 0 if either is absent."""
    return as_record(record.mapping(key), f"{record.where}: {key}").whole(name) or 0


def _confusion(record: Record, num_classes: int) -> ConfusionCounts | None:
    """The counts, as three columns; earlier releases wrote every line of the matrix."""
    where = f"{record.where}: confusion"
    given = record.values.get("confusion")
    if not given:
        return None
    if isinstance(given, list):
        cells = _dense_cells(given, where, num_classes)
    else:
        table = as_record(given, where)
        lists = [table.listing(name) for name in ("true", "predicted", "images")]
        columns = [whole_numbers(values, where, len(lists[0])) for values in lists]
        cells = tuple(sorted(zip(*columns, strict=True)))
        if any(max(true, predicted) >= num_classes for true, predicted, _ in cells):
            raise VituneError(f"{where}: got a class above {num_classes - 1}, expected less.")
    return ConfusionCounts(num_classes, cells)


def _dense_cells(
    lines: list[object], where: str, num_classes: int
) -> tuple[tuple[int, int, int], ...]:
    if len(lines) != num_classes:
        raise VituneError(
            f"{where}: got {len(lines)} lists, expected {num_classes}, one per class."
        )
    return tuple(
        (true, predicted, number)
        for true, line in enumerate(lines)
        for predicted, number in enumerate(whole_numbers(line, f"{where}[{true}]", num_classes))
        if number
    )


def _class_score(record: Record) -> ClassScore:
    return ClassScore(
        name=str(record.needed("name")),
        num_images=record.whole("num_images") or 0,
        precision=record.share("precision"),
        recall=record.share("recall"),
        f1=record.share("f1"),
        effective_images=_positive(record, "effective_images"),
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
