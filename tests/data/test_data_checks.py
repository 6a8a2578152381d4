"""Checks before training: labels, overlap by content, missing files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vitune.data import check_splits, open_source
from vitune.data.checks import duplicates, without_missing
from vitune.errors import DataError

Make = Callable[..., Path]


def test_clean_splits_pass(class_folders: Make) -> None:
    found = check_splits(open_source(class_folders(splits=("train", "val", "test"))))
    assert (found.num_overlapping, found.unseen_labels) == (0, ())
    assert {name: len(set(keys)) for name, keys in found.content.items()} == {
        "train": 8,
        "val": 8,
        "test": 8,
    }


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_label_training_never_had_is_named(
    class_folders: Make, picture: Make, split: str
) -> None:
    root = class_folders(splits=("train", split))
    picture(root / split / "wasp" / "1.png", 777)
    with pytest.raises(DataError, match=rf"labels of {split} in .*: got 'wasp' that training"):
        check_splits(open_source(root))


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_same_bytes_in_two_splits_are_refused(class_folders: Make, split: str) -> None:
    root = class_folders(splits=("train", split))
    shutil.copy(root / "train/ant/2.png", root / split / "ant" / "renamed.png")
    shutil.copy(root / "train/bee/0.png", root / split / "bee" / "renamed.png")
    pair = r"'.*ant.renamed.png' is '.*train.ant.2.png'"
    told = rf"got 2 images of {split} also in train .*{pair}"
    with pytest.raises(DataError, match=told):
        check_splits(open_source(root))
    assert check_splits(open_source(root), allow_overlap=True).num_overlapping == 2


def test_validation_and_test_must_differ_too(class_folders: Make) -> None:
    root = class_folders(splits=("train", "val", "test"))
    shutil.copy(root / "val/ant/0.png", root / "test/bee/9.png")
    with pytest.raises(DataError, match=r"got 1 image of test also in val"):
        check_splits(open_source(root))


def test_one_file_listed_twice_is_an_overlap(tmp_path: Path, picture: Make) -> None:
    for name in "abc":
        picture(tmp_path / f"{name}.png", ord(name))
    (tmp_path / "list.csv").write_text(
        "path,label,split\na.png,1,train\nb.png,2,train\nc.png,1,test\n./a.png,1,test\n"
    )
    with pytest.raises(DataError, match=r"got 1 image of test also in train"):
        check_splits(open_source(tmp_path / "list.csv"))


def test_vtab_compares_the_right_lists(vtab_task: Make) -> None:
    task = vtab_task()
    check_splits(open_source(f"vtab:{task}"))
    shutil.copy(task / "images/train800/000001.png", task / "images/val200/000008.png")
    with pytest.raises(DataError, match=r"got 1 image of val also in train"):
        check_splits(open_source(f"vtab:{task}"))


def test_vtab_test_against_the_thousand(vtab_task: Make) -> None:
    task = vtab_task()
    (task / "train800.txt").unlink()
    shutil.copy(task / "images/train800val200/000005.png", task / "images/test/000101.png")
    with pytest.raises(DataError, match=r"got 1 image of test also in trainval"):
        check_splits(open_source(f"vtab:{task}"))


def test_fixed_lists_count_unseen_labels(vtab_task: Make) -> None:
    task = vtab_task()
    text = (task / "test.txt").read_text().strip().rsplit(maxsplit=1)[0]
    (task / "test.txt").write_text(f"{text} 2\n")
    assert check_splits(open_source(f"vtab:{task}")).unseen_labels == ("2",)


def test_duplicates_within_a_split() -> None:
    assert duplicates([b"a", b"b", b"a"]).tolist() == [True, False, True]


def test_missing_files_are_named_or_skipped(tmp_path: Path, picture: Make) -> None:
    picture(tmp_path / "a.png", 1)
    table = tmp_path / "list.csv"
    table.write_text("path,label\na.png,x\ngone.png,x\nalso gone.png,y\n")
    images = open_source(table)
    with pytest.raises(DataError, match=r"got 2 of 3 files missing, the first '.*gone.png'"):
        without_missing(images, skip=False)
    kept, lost = without_missing(images, skip=True)
    assert [Path(name).name for name in lost] == ["gone.png", "also gone.png"]
    assert len(kept.splits["all"]) == 1
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"got 3 of 3 files missing.*Correct the list\.$"):
        without_missing(images, skip=True)
