"""`vitune data check`: what a data root has of a suite, what is odd, how to get the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, UnidentifiedImageError

from vitune.bench.suites.split_lists import fewshot_names, fewshot_table, fgvc_table
from vitune.bench.suites.suite_names import SUITES
from vitune.bench.suites.suites import FGVC, SOURCES, VTAB1K, Entry, folder_of
from vitune.data import ImageList, Record, check_splits, open_source, present
from vitune.errors import DataError, VituneError, nearest

VTAB_SIZES = {"train": 800, "val": 200, "trainval": 1000}
SAMPLED_IMAGES = 20
MIN_SIDE = 8


@dataclass(frozen=True)
class TaskCheck:
    """The findings for one task.

    Args:
        status: "complete", "odd" (usable or not: see the problems) or "missing".
        counts: images by split.
        num_classes: number of classes in the lists.
        problems: one sentence each.
        remedy: how to get it; empty if it is complete.
    """

    task: str
    folder: str | None
    status: str
    counts: Mapping[str, int]
    num_classes: int
    problems: tuple[str, ...]
    remedy: str = ""


def check_suite(root: str | Path, suite: str = "vtab1k", *, shots: int = 16) -> list[TaskCheck]:
    """Check every task of a suite below `root`: lists, counts, labels, files, shared images.

    Raises:
        VituneError: unknown suite, one without files, or no such folder.
    """
    with_files = tuple(name for name in SUITES if name != "demo")
    if suite not in with_files:
        raise VituneError(
            f"--suite: got {suite!r}, expected one with files. {nearest(suite, with_files)}"
        )
    base = Path(root).expanduser()
    if not base.is_dir():
        raise DataError(f"data check: got {str(root)!r}, expected an existing folder.")
    with TemporaryDirectory() as folder:
        if suite == "fewshot":
            return [
                _checked(Entry(name, None, 0), base / name, suite, Path(folder), shots)
                for name in fewshot_names(base, shots, 0)
            ]
        entries = VTAB1K if suite == "vtab1k" else FGVC
        return [_checked(e, folder_of(base, e), suite, Path(folder), shots) for e in entries]


def _checked(entry: Entry, folder: Path | None, suite: str, lists: Path, shots: int) -> TaskCheck:
    remedy = f"Get {SOURCES[suite]}."
    if folder is None:
        wanted = " or ".join(entry.folders)
        return TaskCheck(entry.name, None, "missing", {}, 0, (f"no folder {wanted}",), remedy)
    try:
        images = open_source(_spec(entry, folder, suite, lists, shots))
    except DataError as error:
        return TaskCheck(entry.name, str(folder), "odd", {}, 0, (str(error),), remedy)
    counts = {name: len(records) for name, records in images.splits.items()}
    problems = [
        *_odd_counts(entry, counts, suite),
        *_odd_labels(entry, images),
        *_odd_files(images),
        *_shared_images(images),
    ]
    used = {record.label for records in images.splits.values() for record in records}
    status = "odd" if problems else "complete"
    return TaskCheck(
        entry.name, str(folder), status, counts, len(used), tuple(problems),
        remedy if problems else "",
    )  # fmt: skip


def _spec(entry: Entry, folder: Path, suite: str, lists: Path, shots: int) -> str:
    if suite == "vtab1k":
        return f"vtab:{folder}"
    if suite == "fgvc":
        return str(fgvc_table(folder.absolute(), entry.image_folder, lists / f"{entry.name}.csv"))
    return str(fewshot_table(folder.absolute(), shots, 0, lists / f"{entry.name}.csv"))


def _odd_counts(entry: Entry, counts: Mapping[str, int], suite: str) -> list[str]:
    expected = dict(VTAB_SIZES) if suite == "vtab1k" else {}
    if entry.num_test is not None:
        expected["test"] = entry.num_test
    found = [
        f"{split}: {counts.get(split, 0)} images instead of {number}"
        if counts.get(split)
        else f"{split}: no list"
        for split, number in expected.items()
        if counts.get(split, 0) != number
    ]
    if "test" not in counts and "test" not in expected:
        found.append("test: no list")
    return found


def _odd_labels(entry: Entry, images: ImageList) -> list[str]:
    found = []
    numbers = sorted({record.label for records in images.splits.values() for record in records})
    if entry.num_classes and numbers and len(images.classes) > entry.num_classes:
        found.append(
            f"labels: {len(images.classes)} classes by the largest label, the task has "
            f"{entry.num_classes}"
        )
    if numbers and len(numbers) < entry.num_classes:
        found.append(f"labels: {len(numbers)} of the task's {entry.num_classes} classes")
    training = {
        record.label
        for split in ("train", "trainval", "all")
        for record in images.splits.get(split, ())
    }
    unseen = [images.classes[label] for label in numbers if label not in training]
    if unseen:
        names = ", ".join(unseen[:5])
        found.append(f"labels: {len(unseen)} classes that training never shows ({names})")
    return found


def _odd_files(images: ImageList) -> list[str]:
    """Missing files, and images of a sample that cannot be read or are far too small."""
    found = []
    for split, records in images.splits.items():
        absent = [record for record in records if not record.exists]
        if absent:
            found.append(f"{split}: {len(absent)} files missing, the first {absent[0].name!r}")
        step = max(1, len(records) // SAMPLED_IMAGES)
        bad = Counter(
            fault for record in records[::step] if record.exists and (fault := _fault(record))
        )
        found += [f"{split}: {count} of a sample {fault}" for fault, count in bad.items()]
    return found


def _fault(record: Record) -> str | None:
    if not isinstance(record.image, Path):
        return None
    try:
        with Image.open(record.image) as image:
            small = min(image.size) < MIN_SIDE
            image.draft("RGB", (64, 64))
            image.load()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return "cannot be read"
    return f"are less than {MIN_SIDE} pixels wide or high" if small else None


def _shared_images(images: ImageList) -> list[str]:
    """Images that two splits share, by content."""
    try:
        findings = check_splits(replace(present(images), fixed_lists=True), allow_overlap=True)
    except DataError as error:
        return [str(error)]
    if not findings.num_overlapping:
        return []
    return [f"splits: {findings.num_overlapping} images are in two splits that must not share any"]
