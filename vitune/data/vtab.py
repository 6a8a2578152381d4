"""The VTAB-1k on-disk format: four lists and their images, one folder per task."""

from __future__ import annotations

from pathlib import Path

from vitune.data.folder import nearest_sibling
from vitune.data.records import ImageList, Record, require_records
from vitune.errors import DataError

MAX_CLASSES = 100_000
"""Every number up to the largest label is a class, so that a wrong label would fill the memory."""

LISTS = {"train800": "train", "val200": "val", "train800val200": "trainval", "test": "test"}


def open_vtab(spec: str) -> ImageList:
    """List a VTAB-1k task: `train800`, `val200`, `train800val200` and `test`, as far as present.

    A line is `images/train800/000000.jpg 307`: a path relative to the task's folder (spaces are
    allowed), a space, and a 0-based label used unchanged. The class count is the largest label of
    all lists plus one, or the number of lines of `classes.txt` if that is larger; the lists may
    leave gaps.

    Args:
        spec: `vtab:ROOT/TASK`.

    Raises:
        DataError: no such task, no list, a line without a label, fewer class names than labels.
    """
    task = Path(spec.removeprefix("vtab:")).expanduser()
    if not task.is_dir():
        raise DataError(
            f"VTAB task: got {spec!r}, expected vtab:ROOT/TASK with an existing folder. "
            f"{nearest_sibling(task)}"
        )
    found = {
        split: require_records(_read_list(task / f"{name}.txt", task), spec, split)
        for name, split in LISTS.items()
        if (task / f"{name}.txt").is_file()
    }
    if not found:
        raise DataError(
            f"VTAB task: got {spec!r} without lists, expected "
            f"{', '.join(f'{name}.txt' for name in LISTS)}."
        )
    num_classes = 1 + max(record.label for records in found.values() for record in records)
    return ImageList(spec, found, _class_names(task, num_classes), fixed_lists=True)


def _read_list(path: Path, task: Path) -> list[Record]:
    records = []
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        parts = line.strip().rsplit(maxsplit=1)
        if len(parts) != 2 or not parts[1].isdecimal() or "\0" in line:
            raise DataError(
                f"{path}, line {number}: got {line.strip()!r}, expected a path, a space and a "
                "label of 0 or more."
            )
        label = parts[1].lstrip("0")
        if len(label) > len(str(MAX_CLASSES)) or int(label or 0) >= MAX_CLASSES:
            raise DataError(
                f"{path}, line {number}: got {line.strip()!r}, expected a label below "
                f"{MAX_CLASSES:,}."
            )
        records.append(Record(task / parts[0], int(label or 0)))
    return records


def _class_names(task: Path, num_classes: int) -> tuple[str, ...]:
    """Names from classes.txt, one per line, or else the labels themselves."""
    path = task / "classes.txt"
    if not path.is_file():
        return tuple(str(label) for label in range(num_classes))
    text = path.read_text(encoding="utf-8", errors="replace")
    names = tuple(line.strip() for line in text.splitlines())
    names = tuple(name for name in names if name)
    if len(names) < num_classes:
        raise DataError(
            f"{path}: got {len(names)} class names, expected at least {num_classes} (the largest "
            "label of all lists plus one)."
        )
    if len(set(names)) < len(names):
        twice = sorted(name for name in set(names) if names.count(name) > 1)
        raise DataError(f"{path}: got {twice[0]!r} twice, expected different class names.")
    return names
