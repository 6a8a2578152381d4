"""Sources: folders, tables, VTAB lists, demos, and what each refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitune.data import SOURCES, absolute_source, list_images, open_source
from vitune.errors import DataError

Make = Callable[..., Path]


def test_folder_of_class_folders_is_one_list(class_folders: Make) -> None:
    root = class_folders(classes=("bee", "ant"), each=3)
    (root / ".hidden").mkdir()
    (root / "ant" / "notes.txt").write_text("not an image")
    found = open_source(root)
    assert list(found.splits) == ["all"]
    assert found.classes == ("ant", "bee")
    assert [record.label for record in found.splits["all"]] == [0, 0, 0, 1, 1, 1]
    assert all(
        Path(record.name).parent.name == found.classes[record.label]
        for record in found.splits["all"]
    )


@pytest.mark.parametrize("val_name", ["val", "valid", "validation", "Validation"])
def test_split_folders_share_one_class_map(class_folders: Make, val_name: str) -> None:
    root = class_folders(splits=("train",), classes=("a", "b", "c"))
    class_folders(splits=(val_name,), classes=("b", "c"), each=1)
    class_folders(splits=("test",), classes=("c",), each=2)
    found = open_source(str(root))
    assert {name: len(records) for name, records in found.splits.items()} == {
        "train": 12,
        "val": 2,
        "test": 2,
    }
    assert {record.label for record in found.splits["test"]} == {found.classes.index("c")}


def test_a_class_may_be_called_train(class_folders: Make) -> None:
    found = open_source(class_folders(classes=("car", "train")))
    assert found.classes == ("car", "train") and list(found.splits) == ["all"]


def test_nested_class_folders_and_link_loops_end(class_folders: Make, picture: Make) -> None:
    root = class_folders(each=1)
    picture(root / "ant" / "deeper" / "x.JPG", 50)
    (root / "ant" / "loop").symlink_to(root / "ant")
    assert len(open_source(root).splits["all"]) == 3


def test_folder_errors(class_folders: Make, picture: Make, tmp_path: Path) -> None:
    root = class_folders("photos", splits=("train", "val"))
    with pytest.raises(DataError, match=r"got '.*photoz'.*Did you mean photos\?"):
        open_source(tmp_path / "photoz")
    with pytest.raises(DataError, match=r"no such folder. There is no '.*nowhere' either"):
        open_source(tmp_path / "nowhere" / "photos")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"got no images, expected files with a suffix"):
        open_source(tmp_path / "empty")
    picture(tmp_path / "loose" / "1.png", 1)
    with pytest.raises(DataError, match=r"images without class folders"):
        open_source(tmp_path / "loose")
    (root / "test").mkdir()
    with pytest.raises(DataError, match=r"split 'test' of .* got no images"):
        open_source(root)
    (root / "test").rmdir()
    (root / "valid" / "ant").mkdir(parents=True)
    with pytest.raises(DataError, match=r"got 'valid' as a second val split"):
        open_source(root)


def test_stray_and_empty_class_folders_are_named(class_folders: Make, picture: Make) -> None:
    root = class_folders("photos", splits=("train",))
    picture(root / "cats" / "1.png", 1)
    with pytest.raises(DataError, match=r"got 'cats' with images next to 'train'"):
        open_source(root)
    other = class_folders("other")
    (other / "cow").mkdir()
    with pytest.raises(DataError, match=r"class folder 'cow' .* got no images"):
        open_source(other)


def test_unlabelled_test_images_beside_train_have_a_remedy(
    class_folders: Make, picture: Make
) -> None:
    root = class_folders("contest", splits=("train",))
    picture(root / "test" / "1.png", 1)
    with pytest.raises(DataError, match=r"with images next to 'train'.*Move 'test' elsewhere; vit"):
        open_source(root)


def test_list_images_for_prediction(class_folders: Make, tmp_path: Path) -> None:
    root = class_folders()
    found = list_images(root)
    assert found == sorted(found) and len(found) == 8
    assert list_images(found[0]) == [found[0]]
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"image file: got .*a.txt"):
        list_images(tmp_path / "a.txt")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"got no images"):
        list_images(tmp_path / "none")
    with pytest.raises(DataError, match=r"expected an existing folder"):
        list_images(tmp_path / "absent")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"loop', a link that leads to no folder or file"):
        list_images(tmp_path / "loop")
    with pytest.raises(DataError, match=r"It is a link that leads to no folder or file"):
        open_source(tmp_path / "loop")


def test_csv_with_splits_blanks_and_quotes(tmp_path: Path, picture: Make) -> None:
    for name in ("a b.png", "c,d.png", "e.png"):
        picture(tmp_path / "im" / name, len(name))
    table = tmp_path / "list.csv"
    table.write_text(
        "label, path ,split,author\n"
        'wolf,im/a b.png,train,x\n\nNA,"im/c,d.png",valid,y\nwolf,im/e.png,TEST,\n',
        encoding="utf-8-sig",
    )
    found = open_source(table)
    assert found.classes == ("NA", "wolf")
    assert {name: [r.image for r in records] for name, records in found.splits.items()} == {
        "train": [tmp_path / "im/a b.png"],
        "val": [tmp_path / "im/c,d.png"],
        "test": [tmp_path / "im/e.png"],
    }


def test_whole_number_labels_sort_as_numbers_without_gaps(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("path,label\na.png,10\nb.png,2\nc.png,300\n")
    found = open_source(table)
    assert found.classes == ("2", "10", "300")
    assert [record.label for record in found.splits["all"]] == [1, 0, 2]


def test_parquet_reads_like_csv(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"path": ["a b.png", "c.png"], "label": [1.0, 0.0], "split": ["train", "test"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "list.parquet")
    found = open_source(tmp_path / "list.parquet")
    assert found.classes == ("0", "1")
    assert found.splits["train"][0].image == tmp_path / "a b.png"
    assert found.splits["train"][0].label == 1
    (tmp_path / "bad.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"data table: got .*expected a Parquet file"):
        open_source(tmp_path / "bad.parquet")
    for gap in (None, float("nan")):
        table = pyarrow.table({**columns, "label": [1.0, gap]})
        parquet.write_table(table, tmp_path / "gap.parquet")
        with pytest.raises(DataError, match=r"column 'label' in .* line 2: got an empty cell"):
            open_source(tmp_path / "gap.parquet")


def test_text_in_a_parquet_file_may_be_stored_as_bytes(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"path": [b"a.png", b"b.png"], "label": [b"caf\xc3\xa9", b"bar"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "list.parquet")
    found = open_source(tmp_path / "list.parquet")
    assert found.classes == ("bar", "caf\u00e9")
    assert [record.image for record in found.splits["all"]] == [
        tmp_path / "a.png", tmp_path / "b.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,lable\na.png,1\n", r"Column 'label' is missing; Did you mean lable\?"),
        ("path,label\n", r"got no lines"),
        ("", r"got none, expected path, label"),
        ("a.png,1\nb.png,2\n", r"'path' is missing; the first line must name the columns"),
        ("path;label\na.png;1\n", r"got columns separated by semicolons, expected commas"),
        ("path\tlabel\na.png\t1\n", r"got columns separated by tabs, expected commas"),
        ("path,label,label\na.png,1,2\n", r"got 2 columns called 'label', expected one"),
        ("path,label\na.png\n", r"column 'label' in .*, line 2: got an empty cell"),
        ("path,label,split\na.png,1,trian\n", r"got 'trian'.*Did you mean train\?"),
    ],
)
def test_table_errors(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "list.csv")


def test_table_that_is_absent_or_not_text(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"path,label\n\xff\xfe\x00,1\n")
    with pytest.raises(DataError, match=r"expected comma-separated UTF-8"):
        open_source(tmp_path / "list.csv")
    with pytest.raises(DataError, match=r"expected an existing file. Did you mean list.csv\?"):
        open_source(tmp_path / "lists.csv")


def test_vtab_lists_keep_labels_and_gaps(vtab_task: Make) -> None:
    task = vtab_task()
    found = open_source(f"vtab:{task}")
    assert {name: len(records) for name, records in found.splits.items()} == {
        "train": 8,
        "val": 4,
        "trainval": 12,
        "test": 6,
    }
    assert found.classes == ("0", "1", "2", "3") and found.fixed_lists
    assert found.splits["train"][0].image == task / "images/train800/a blank 0.png"
    (task / "classes.txt").write_text("apple\nbaby\nbear\nbee\n")
    assert open_source(f"vtab:{task}").classes == ("apple", "baby", "bear", "bee")


def test_vtab_errors(vtab_task: Make, tmp_path: Path) -> None:
    task = vtab_task()
    with pytest.raises(DataError, match=r"expected vtab:ROOT/TASK.*Did you mean cifar\?"):
        open_source(f"vtab:{task.parent}/cifar100")
    (task.parent / "bare").mkdir()
    with pytest.raises(DataError, match=r"without lists, expected train800.txt"):
        open_source(f"vtab:{task.parent}/bare")
    (task / "classes.txt").write_text("apple\nbaby\n")
    with pytest.raises(DataError, match=r"got 2 class names, expected at least 4"):
        open_source(f"vtab:{task}")
    (task / "classes.txt").write_text("a\nb\nb\nc\n")
    with pytest.raises(DataError, match=r"got 'b' twice"):
        open_source(f"vtab:{task}")
    for line in ("images/x.png", "images/x.png -1", "images/x.png cat"):
        (task / "test.txt").write_text(line + "\n")
        with pytest.raises(DataError, match=r"test.txt, line 1: got 'images/x.png"):
            open_source(f"vtab:{task}")
    for label in ("100000", "9" * 5000):
        (task / "test.txt").write_text(f"images/x.png {label}\n")
        with pytest.raises(DataError, match=r"expected a label below 100,000"):
            open_source(f"vtab:{task}")
    (task / "test.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"split 'test' of .* got no images"):
        open_source(f"vtab:{task}")


def test_digits_are_split_once_and_for_all() -> None:
    found, again = open_source("demo:digits"), open_source("demo:digits")
    assert found == again
    assert (len(found.splits["train"]), len(found.splits["test"])) == (200, 1597)
    assert "val" not in found.splits
    assert np.bincount([r.label for r in found.splits["train"]]).tolist() == pytest.approx(
        [20] * 10, abs=1
    )
    other = open_source("demo:digits?train=50&seed=3")
    assert len(other.splits["train"]) == 50
    image = found.splits["train"][0].image
    assert not isinstance(image, Path)
    for size in ((32, 32), (20, 24)):
        pixels = image.pixels(*size)
        assert pixels.shape == (*size, 3) and pixels.dtype == np.uint8
        assert pixels.max() > 200 and np.array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("demo:digit", r"Did you mean digits\?"),
        ("demo:digits?trian=5", r"got 'trian', expected a known one. Did you mean train\?"),
        ("demo:digits?train=many", r"got 'many', expected a whole number"),
        ("demo:digits?train=5", r"train of .*: got 5, expected 10 to 1787"),
        ("demo:count?train=3", r"got 3, expected at least 8 images"),
        ("vtaab:x/y", r"expected one of: vtab:ROOT/TASK, demo:NAME.* Did you mean vtab:"),
        ("digits", r"Did you mean 'demo:digits'\?"),
    ],
)
def test_unknown_specs_name_the_nearest(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(spec)


def test_a_file_that_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"suffix '.zip' is not a data source"):
        open_source(tmp_path / "data.zip")


def test_every_source_says_how_it_is_written() -> None:
    assert len(SOURCES) == 4
    assert all(source.form for source in SOURCES.values())


def test_relabelled_matches_classes_by_name(class_folders: Make) -> None:
    found = open_source(class_folders(classes=("ant", "bee"), each=2))
    moved = found.relabelled(("bee", "cow", "ant"))
    assert [record.label for record in moved.splits["all"]] == [2, 2, 0, 0]
    assert moved.classes == ("bee", "cow", "ant")
    with pytest.raises(DataError, match=r"got 'ant', expected classes .*Did you mean ants\?"):
        found.relabelled(("ants", "bee"))
    unused = replace(found, classes=("ant", "bee", "extinct"))
    assert unused.relabelled(("ant", "bee")).classes == ("ant", "bee")


def test_a_spec_is_made_to_hold_in_any_working_directory(
    class_folders: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = class_folders()
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("HOME", str(tmp_path))
    name = root.name
    assert absolute_source(name) == absolute_source(f"./{name}/") == str(root)
    assert absolute_source("lists/a.csv") == str(root.parent / "lists" / "a.csv")
    assert absolute_source("~/a.parquet") == str(tmp_path / "a.parquet")
    assert absolute_source(f"vtab:{name}/cifar") == f"vtab:{root}/cifar"
    for unchanged in ("demo:digits?train=40", "no such folder", str(root)):
        assert absolute_source(unchanged) == unchanged
