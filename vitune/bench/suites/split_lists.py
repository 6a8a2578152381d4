"""Split files of FGVC and few-shot releases, turned into one table of path, label and split."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vitune.errors import DataError, one_line
from vitune.files import write_atomic

Line = tuple[str, str, str]

JSON_SPLITS = ("train", "val", "test")
FEWSHOT_LIST = re.compile(r"^train_meta\.list\.num_shot_(\d+)\.seed_(\d+)$")


def fgvc_table(folder: Path, image_folder: str, out: Path) -> Path:
    """Write the table of an FGVC data set and return its path.

    VPT's JSON splits are preferred; without them the data set's own files are read: CUB's and
    NABirds' text files, Dogs' .mat lists, or class folders under train/ and val/ or test/.

    Raises:
        DataError: none of these is there, or one is damaged.
    """
    for read in (_vpt_json, _bird_files, _dog_files, _class_folders):
        lines = read(folder, image_folder)
        if lines:
            return write_table(lines, out)
    raise DataError(
        f"FGVC data set: got {str(folder)!r} without splits, expected train.json and test.json "
        "(VPT), images.txt (CUB, NABirds), train_list.mat (Dogs), or train/ and test/ folders."
    )


def fewshot_names(root: Path, shots: int, seed: int) -> list[str]:
    """Data sets under `root` with a list for that number of shots and seed."""
    wanted = f"train_meta.list.num_shot_{shots}.seed_{seed}"
    return sorted(path.parent.name for path in root.glob(f"*/{wanted}"))


def fewshot_table(folder: Path, shots: int, seed: int, out: Path) -> Path:
    """Write the table of a few-shot data set (NOAH's lists) and return its path.

    A line is `CLASS/FILE LABEL`, spaces in the path allowed, relative to images/train or
    images/test; `val_meta.list` is the validation split where there is one.

    Raises:
        DataError: a list is missing or a line has no label.
    """
    lines: list[Line] = []
    for split, name in (
        ("train", f"train_meta.list.num_shot_{shots}.seed_{seed}"),
        ("val", "val_meta.list"),
        ("test", "test_meta.list"),
    ):
        path = folder / name
        if not path.is_file():
            if split == "val":
                continue
            raise DataError(f"few-shot data set: got {str(folder)!r} without {name}.")
        base = folder / "images" / ("test" if split == "test" else "train")
        lines += [(str(base / image), label, split) for image, label in _list_lines(path)]
    return write_table(lines, out)


def _vpt_json(folder: Path, image_folder: str) -> list[Line]:
    """VPT's {path: class} files; ids may be 1-based or sparse and are mapped over the union."""
    names = [name for name in JSON_SPLITS if (folder / f"{name}.json").is_file()]
    if "train" not in names and (folder / "trainval.json").is_file():
        return _json_lines(folder, {"trainval": "train", "test": "test"}, image_folder)
    if "train" not in names:
        return []
    return _json_lines(folder, {name: name for name in names}, image_folder)


def _json_lines(folder: Path, splits: dict[str, str], image_folder: str) -> list[Line]:
    lines: list[Line] = []
    for name, split in splits.items():
        path = folder / f"{name}.json"
        try:
            labels = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: got {error}, expected JSON of path: class.") from None
        if not isinstance(labels, dict):
            raise DataError(f"{path}: got {type(labels).__name__}, expected an object.")
        lines += [
            (str(_image(folder, image_folder, image)), str(label), split)
            for image, label in labels.items()
        ]
    return lines


def _image(folder: Path, image_folder: str, image: str) -> Path:
    """Below the usual image folder, or below the data set itself if that does not exist."""
    usual = folder / image_folder / image
    plain = folder / image
    return plain if plain.is_file() and not usual.is_file() else usual


def _bird_files(folder: Path, image_folder: str) -> list[Line]:
    """CUB and NABirds: images.txt, image_class_labels.txt, train_test_split.txt (1 is train)."""
    names = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    if not all((folder / name).is_file() for name in names):
        return []
    images, labels, in_train = (dict(_pairs(folder / name)) for name in names)
    try:
        return [
            (
                str(folder / image_folder / image),
                labels[key],
                "train" if in_train[key] == "1" else "test",
            )
            for key, image in images.items()
        ]
    except KeyError as error:
        raise DataError(f"{folder}: got image {error} in images.txt alone.") from None


def _dog_files(folder: Path, image_folder: str) -> list[Line]:
    """Stanford Dogs: train_list.mat and test_list.mat."""
    lines: list[Line] = []
    for split in ("train", "test"):
        path = folder / f"{split}_list.mat"
        if not path.is_file():
            return []
        lines += [
            (str(folder / image_folder / image), label, split) for image, label in _mat_lines(path)
        ]
    return lines


def _mat_lines(path: Path) -> list[tuple[str, str]]:
    """The `file_list` of a .mat file with its `labels`."""
    import numpy as np
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content: dict[str, Any] = loadmat(str(path), squeeze_me=True)
        images, labels = (np.atleast_1d(content[name]) for name in ("file_list", "labels"))
        return [(str(i), str(int(label))) for i, label in zip(images, labels, strict=True)]
    except (MatReadError, OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: got {one_line(error)}, expected a .mat file with file_list and labels of "
            "equal length."
        ) from None


def _class_folders(folder: Path, image_folder: str) -> list[Line]:
    """Class folders under train/ and test/; if there is no test/, val/ is the test split."""
    train, test = folder / "train", folder / "test"
    splits = {"train": train, "test": test if test.is_dir() else folder / "val"}
    if test.is_dir() and (folder / "val").is_dir():
        splits["val"] = folder / "val"
    if not all(path.is_dir() for path in splits.values()):
        return []
    return [
        (str(image), kind.name, split)
        for split, path in splits.items()
        for kind in sorted(path.iterdir())
        if kind.is_dir()
        for image in sorted(kind.iterdir())
        if image.is_file() and not image.name.startswith(".")
    ]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: got {one_line(error)}, expected UTF-8 text.") from None


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    """`key value` lines, spaces in the value allowed."""
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            parts = line.strip().split(maxsplit=1)
            if len(parts) != 2:
                raise DataError(f"{path}, line {number}: got {line!r}, expected two fields.")
            yield parts[0], parts[1]


def _list_lines(path: Path) -> Iterator[tuple[str, str]]:
    """`path label` lines, spaces in the path allowed."""
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            parts = line.strip().rsplit(maxsplit=1)
            if len(parts) != 2 or not parts[1].isdecimal():
                raise DataError(
                    f"{path}, line {number}: got {line.strip()!r}, expected a path and a label."
                )
            yield parts[0], parts[1]


def write_table(lines: Iterable[Line], out: Path) -> Path:
    """Write (path, label, split) lines as a table that `open_source` reads; return its path."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("path", "label", "split"))
    writer.writerows(lines)
    text = buffer.getvalue()
    if not out.is_file() or out.read_text(encoding="utf-8") != text:
        write_atomic(out, text)
    return out.absolute()
