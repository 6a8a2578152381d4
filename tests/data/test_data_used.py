"""The list of a run's images: what it keeps, what it tells apart, what it says of a change."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from vitune.data import Record, Split, UsedImages
from vitune.data.record_content import record_hashes
from vitune.errors import DataError

CLASSES = ("cat", "dög")


def split(name: str, numbers: list[int], labels: list[int] | None = None, **paths: str) -> Split:
    """A split whose pictures are single colours; `paths` renames "p1" to something else."""
    images = np.stack([np.full((2, 3, 3), number, np.uint8) for number in numbers])
    names = tuple(paths.get(f"p{number}", f"p{number}") for number in numbers)
    given = np.array(labels or [number % 2 for number in numbers], np.int64)
    return Split(name, images, given, names, CLASSES)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    odd = "caf\udce9 \n,\u00fc.png"  # a name that is not UTF-8, with a line break
    used = UsedImages.of(split("train", [1, 2, 3], p2=odd), split("val", [4]))
    used.write(tmp_path / "images.npz")
    again = UsedImages.read(tmp_path / "images.npz")
    assert again.classes == CLASSES and list(again.tables) == ["train", "val"]
    assert again.tables["train"].paths == ("p1", odd, "p3")
    for role, table in used.tables.items():
        assert np.array_equal(again.tables[role].digests, table.digests)
        assert np.array_equal(again.tables[role].labels, table.labels)
    assert used.difference(again) is None
    UsedImages.of(split("train", [1]), None).write(tmp_path / "alone.npz")
    assert list(UsedImages.read(tmp_path / "alone.npz").tables) == ["train"]


def test_the_list_is_small(tmp_path: Path) -> None:
    images = np.zeros((20_000, 1, 1, 3), np.uint8)
    digests = np.random.default_rng(0).integers(0, 256, (20_000, 32), np.uint8)
    paths = tuple(f"/home/someone/photos/{n % 10:02d}/{n:06d}.jpg" for n in range(20_000))
    many = Split("train", images, np.arange(20_000) % 2, paths, CLASSES, digests)
    UsedImages.of(many, None).write(tmp_path / "images.npz")
    per_image = (tmp_path / "images.npz").stat().st_size / 20_000
    assert 32 < per_image < 45, "32 bytes of digest are not compressible, the rest must be"


def test_roles_are_told_by_content() -> None:
    used = UsedImages.of(split("train", [1, 2]), split("val", [2, 3]))
    some = split("all", [3, 2, 1, 9])
    digests = [row.tobytes() for row in some.content_digests]
    did = used.took_part([*digests, None])
    assert did["train"].tolist() == [False, True, True, False, False]
    assert did["val"].tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("train", "val", "told"),
    [
        (split("train", [1, 2, 3]), split("val", [4]), None),
        (split("train", [1, 2, 3], p1="moved"), split("val", [4]), None),
        (split("train", [1, 7, 3], [1, 0, 1], p7="p2"), split("val", [4]), r"1 changed \('p2'\)"),
        (split("train", [1, 3]), split("val", [4]), r"1 missing \('p2'\)"),
        (split("train", [1, 2, 3, 5]), split("val", [4]), r"1 new \('p5'\)"),
        (split("train", [1, 2, 3], [1, 1, 1]), split("val", [4]), r"1 with another label \('p2'\)"),
        (split("train", [2, 1, 3]), split("val", [4]), "the same files in a different order"),
        (split("train", [1, 2, 3, 4]), None, r"a different order or split \(4 training images\)"),
        (split("train", [5, 6]), split("val", [4]), r"3 missing .*'p3'\), 2 new \('p5', 'p6'\)"),
    ],
    ids=["same", "renamed", "changed", "missing", "new", "label", "order", "division", "other"],
)
def test_a_difference_is_named(train: Split, val: Split | None, told: str | None) -> None:
    before = UsedImages.of(split("train", [1, 2, 3]), split("val", [4]))
    found = before.difference(UsedImages.of(train, val))
    if told is None:
        assert found is None
    else:
        assert found is not None

        assert re.search(told, found), found


def test_in_a_folder_that_moved_only_what_changed_is_named() -> None:
    def at(root: str, *numbers: int, moved: int = 0) -> UsedImages:
        places = {f"p{n}": f"{root}/{CLASSES[(n + (n == moved)) % 2]}/{n}.png" for n in numbers}
        labels = [(n + (n == moved)) % 2 for n in numbers]
        return UsedImages.of(split("train", list(numbers), labels, **places), None)

    before = at("/old/place", 1, 2, 3, 4)
    assert before.difference(at("/new", 1, 2, 3, 4)) is None
    assert before.difference(at("/new", 1, 3, 4)) == "1 missing ('cat/2.png')"
    told = before.difference(at("/new", 1, 2, 3, 4, moved=2))
    assert told == "1 missing ('cat/2.png'), 1 new ('dög/2.png')"


def test_other_classes_are_a_difference() -> None:
    before = UsedImages.of(split("train", [1, 2]), None)
    now = UsedImages(before.tables, ("cat", "cow"))
    assert before.difference(now) == "classes 'cat', 'cow' instead of 'cat', 'dög'"


@pytest.mark.parametrize("damage", [b"", b"no zip", None])
def test_a_damaged_list_is_named(tmp_path: Path, damage: bytes | None) -> None:
    file = tmp_path / "images.npz"
    UsedImages.of(split("train", [1, 2]), None).write(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(DataError, match=r"images\.npz: got a damaged list of images"):
        UsedImages.read(file)
    np.savez(tmp_path / "other.npz", train_sha256=np.zeros((2, 32), np.uint8))
    with pytest.raises(DataError, match="damaged list"):
        UsedImages.read(tmp_path / "other.npz")
    np.savez(
        tmp_path / "short.npz",
        train_sha256=np.zeros((2, 32), np.uint8),
        train_labels=np.zeros(2, np.int64),
        train_paths=np.frombuffer(b"one\0", np.uint8),
        classes=np.frombuffer(b"c\0", np.uint8),
    )
    with pytest.raises(DataError, match=r"damaged list.*1 paths, 2 labels"):
        UsedImages.read(tmp_path / "short.npz")


def test_files_that_cannot_be_read_have_no_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    hashes = record_hashes([Record(tmp_path / "a", 0), Record(tmp_path / "gone", 0)])
    assert hashes[0] is not None and hashes[0].hex().startswith("ca978112") and hashes[1] is None
