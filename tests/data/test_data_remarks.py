"""What is odd about images: found, counted, named; and what is refused for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitune.cli import run
from vitune.data import Remark, inspect_images, load_splits, open_source
from vitune.errors import DataError
from vitune.preprocessing import Preprocessing

Make = Callable[..., Path]


def load(root: Path, preprocessing: Preprocessing, **given: object) -> dict[str, Remark]:
    splits = load_splits(root, preprocessing, seed=0, include=("train", "val"), **given)  # type: ignore[arg-type]
    return {remark.kind: remark for remark in splits.remarks}


def inspected(root: Path) -> dict[str, Remark]:
    found = inspect_images(root)
    kinds = [remark.kind for remark in found.remarks]
    assert len(set(kinds)) == len(kinds)
    assert found.num_faults == sum(remark.is_fault for remark in found.remarks)
    return {remark.kind: remark for remark in found.remarks}


def ends(remark: Remark) -> list[str]:
    return [Path(name).name for name in remark.names]


def test_clean_images_have_no_remarks(class_folders: Make, preprocessing: Preprocessing) -> None:
    root = class_folders(splits=("train", "val", "test"))
    assert load(root, preprocessing) == {} == inspected(root)
    assert inspected(Path("demo:digits")) == {}


def test_one_image_in_two_classes_is_told(
    class_folders: Make, preprocessing: Preprocessing
) -> None:
    root = class_folders()
    shutil.copy(root / "ant/1.png", root / "bee/copy.png")
    shutil.copy(root / "ant/2.png", root / "ant/again.png")
    for found in (load(root, preprocessing), inspected(root)):
        told = found["two_classes"]
        assert told.text == "1 image in two classes" and told.is_fault
        assert told.names == (f"{root}/ant/1.png (ant) is {root}/bee/copy.png (bee)",)
    assert inspected(root)["repeated"].as_dict()["num"] == 4


def test_one_image_with_two_labels_over_train_and_val(
    class_folders: Make, preprocessing: Preprocessing
) -> None:
    root = class_folders(splits=("train", "val"))
    shutil.copy(root / "train/ant/1.png", root / "val/bee/copy.png")
    found = load(root, preprocessing, allow_overlap=True)
    assert "two_classes" in found
    assert inspected(root)["overlap"].text == "1 image in two splits"


def test_one_path_with_two_labels_is_told(
    tmp_path: Path, picture: Make, preprocessing: Preprocessing
) -> None:
    for number in range(6):
        picture(tmp_path / f"{number}.png", number)
    lines = [f"{number}.png,{'ant' if number < 3 else 'bee'}" for number in range(6)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines, "./1.png,bee"]))
    for found in (load(tmp_path / "list.csv", preprocessing), inspected(tmp_path / "list.csv")):
        assert found["two_labels"].names == (f"{tmp_path}/1.png (ant, bee)",)
        assert "two_classes" not in found


def test_classes_written_in_several_ways_are_told(
    class_folders: Make, preprocessing: Preprocessing
) -> None:
    root = class_folders(classes=("Seal point", "seal_point", "bee", "cafe\u0301", "café"))
    told = load(root, preprocessing)["alike_classes"]
    assert told.text == "2 classes written in several ways" and not told.is_fault
    assert told.names[0] == "'Seal point' (4 images), 'seal_point' (4 images)"


def test_rare_classes_are_told(class_folders: Make, preprocessing: Preprocessing) -> None:
    root = class_folders(classes=("ant", "bee", "cat"), each=6)
    for number in range(1, 6):
        (root / "bee" / f"{number}.png").unlink()
    for found in (load(root, preprocessing, lone_classes=True), inspected(root)):
        told = found["rare_classes"]
        assert told.text.startswith("1 class with fewer than a fifth of the 6 images of 'ant'")
        assert told.names == ("'bee' (1)",) and not told.is_fault
    (root / "ant" / "0.png").unlink()
    (root / "cat" / "0.png").unlink()  # five to one is not yet remarkable
    assert "rare_classes" not in inspected(root)


def test_unread_and_loose_files_are_told(class_folders: Make, preprocessing: Preprocessing) -> None:
    root = class_folders()
    for name in ("clip.mov", "scan.PSD", "other.psd", "README.md", "labels.json", ".hidden.raw"):
        (root / "ant" / name).write_bytes(b"x")
    shutil.copy(root / "ant/1.png", root / "loose.png")
    found = load(root, preprocessing)
    assert found["unread"].text.startswith("3 files of unread kinds (2 .psd, 1 .mov; convert")
    assert sorted(ends(found["unread"])) == ["clip.mov", "other.psd", "scan.PSD"]
    assert ends(found["loose"]) == ["loose.png"]


def test_splits_with_loose_images_are_not_taken_for_classes(class_folders: Make) -> None:
    root = class_folders(splits=("train", "test"))
    for split in ("train", "test"):
        shutil.copy(root / split / "ant/1.png", root / split / "loose.png")
    listed = open_source(root)
    assert listed.classes == ("ant", "bee") and set(listed.splits) == {"train", "test"}
    assert [Path(name).name for name in listed.loose] == ["loose.png", "loose.png"]


def test_a_class_of_trains_beside_others_is_a_class(class_folders: Make) -> None:
    root = class_folders(classes=("bus", "train"))
    (root / "train" / "steam").mkdir()
    shutil.move(root / "train/1.png", root / "train/steam/1.png")
    assert open_source(root).classes == ("bus", "train")


def test_nearly_black_images_are_told(class_folders: Make, preprocessing: Preprocessing) -> None:
    root = class_folders()
    deep = np.random.default_rng(0).integers(0, 4096, (20, 20)).astype(np.uint16)
    Image.fromarray(deep).save(root / "ant" / "ct.png")
    for budget in (None, 0):  # in memory, then on disk, then found on disk again
        for _ in range(2):
            found = load(root, preprocessing, memory_budget_mib=budget)
            assert ends(found["nearly_black"]) == ["ct.png"]
    assert not inspected(root)["nearly_black"].is_fault


def test_a_dark_photograph_gets_no_hint_about_16_bits(class_folders: Make) -> None:
    root = class_folders()
    Image.new("RGB", (20, 20), (3, 2, 0)).save(root / "ant" / "night.jpg")
    assert inspected(root)["nearly_black"].text == "1 image nearly black"
    Image.new("L", (20, 20), 3).save(root / "bee" / "scan.tif")
    assert "16-bit" in inspected(root)["nearly_black"].text


def test_skipped_images_are_named(class_folders: Make, preprocessing: Preprocessing) -> None:
    root = class_folders()
    (root / "ant/bad.jpg").write_bytes(b"\xff\xd8 no")
    os.mkfifo(root / "bee/pipe.png")
    with pytest.raises(DataError, match=r"got 1 of 10 files missing or not regular files"):
        load(root, preprocessing)
    told = load(root, preprocessing, skip_bad_images=True)["skipped"]
    assert told.text == "2 unreadable images skipped"
    assert sorted(ends(told)) == ["bad.jpg", "pipe.png"]
    found = inspected(root)
    assert found["missing"].names == (f"{root}/bee/pipe.png",)
    assert "bad.jpg': got UnidentifiedImageError" in found["unreadable"].names[0]


def test_one_class_alone_is_refused(class_folders: Make, preprocessing: Preprocessing) -> None:
    root = class_folders(classes=("ant",))
    with pytest.raises(DataError, match=r"classes of .*: got one, 'ant', expected at least 2"):
        load(root, preprocessing)
    assert inspected(root)["one_class"].is_fault


def test_a_class_of_one_image_and_one_without_training(class_folders: Make, picture: Make) -> None:
    root = class_folders()
    picture(root / "wasp" / "1.png", 555)
    assert inspected(root)["single_image"].names == ("wasp",)
    split = class_folders("split", splits=("train", "val"))
    picture(split / "val" / "wasp" / "1.png", 556)
    assert inspected(split)["unseen_class"].names == ("wasp",)


@pytest.mark.parametrize("target", ["..", "../bee", "../bee/deep"])
def test_a_link_into_another_class_is_refused(class_folders: Make, target: str) -> None:
    root = class_folders()
    (root / "bee" / "deep").mkdir()
    shutil.copy(root / "bee/1.png", root / "bee/deep/9.png")
    (root / "ant" / "more").symlink_to(target, target_is_directory=True)
    with pytest.raises(DataError, match=r"'ant' of .*: got '.*more', which .* class 'bee'"):
        open_source(root)


def test_links_that_harm_nobody_are_followed(class_folders: Make, tmp_path: Path) -> None:
    root, store = class_folders(), class_folders("store", classes=("extra",))
    (root / "ant" / "more").symlink_to(store / "extra", target_is_directory=True)
    (root / "ant" / "loop").symlink_to(".", target_is_directory=True)
    (root / "wasp").symlink_to(store / "extra", target_is_directory=True)
    (root / "ant" / "more").unlink()
    assert len(open_source(root).splits["all"]) == 12
    (root / "wasps").symlink_to(root / "wasp", target_is_directory=True)
    with pytest.raises(DataError, match=r"'wasp' of .*which leads to the images of class 'wasps'"):
        open_source(root)


def test_a_root_of_tasks_is_no_folder_of_classes(vtab_task: Make) -> None:
    root = vtab_task().parent
    with pytest.raises(DataError, match=r"got the VTAB-1k task 'cifar', .*--suite vtab1k"):
        open_source(root)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png,Siamese, seal point", r"line 3: got 3 cells, expected the 2 of the heading. Put"),
        ("a\0.png,ant", r"column 'path' in .*line 3: got 'a\\x00.png', expected no NUL byte"),
        ("a.png,an\0t", r"column 'label' in .*line 3: got 'an\\x00t', expected no NUL byte"),
    ],
)
def test_odd_lines_of_a_table_are_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(f"path,label\nb.png,bee\n{line}\n")
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "list.csv")


def test_empty_cells_at_the_end_are_no_label(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('path,label,\na.png,"Siamese, seal point",,\nb.png,bee\n')
    assert open_source(tmp_path / "list.csv").classes == ("Siamese, seal point", "bee")


def test_a_nul_in_a_vtab_list_is_refused(vtab_task: Make) -> None:
    task = vtab_task()
    (task / "test.txt").write_text("images/test/0\0.png 1\n")
    with pytest.raises(DataError, match=r"test.txt, line 1: got 'images/test/0\\x00.png 1'"):
        open_source(f"vtab:{task}")


def test_data_check_says_it_in_a_table_and_by_its_exit_code(
    class_folders: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    root = class_folders()
    assert run(["data", "check", str(root)]) == 0
    assert "nothing odd" in capsys.readouterr().out
    shutil.copy(root / "ant/1.png", root / "loose.png")
    assert run(["data", "check", str(root)]) == 0
    assert "no faults, 1 note" in capsys.readouterr().out
    assert run(["data", "check", str(root), "--strict"]) == 2
    for number in range(7):
        shutil.copy(root / f"ant/{number % 4}.png", root / "bee" / f"[red]{number}.png")
    capsys.readouterr()
    assert run(["data", "check", str(root)]) == 2
    out = capsys.readouterr().out
    assert "fault 4 images in two classes:" in out and "1 fault, 2 notes" in out
    assert "[red]0.png (bee)" in out
    assert run(["data", "check", str(root), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["fit_to_train"] is False and told["splits"][0]["num_images"] == 15
    assert run(["data", "check", str(root / "nowhere")]) == 2


def test_data_check_of_a_suite_fails_where_a_task_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run(["data", "check", str(tmp_path / "empty"), "--suite", "vtab1k"]) == 2
    assert "missing" in capsys.readouterr().out
    assert run(["data", "fake", str(tmp_path / "fake"), "--suite", "fgvc"]) == 0
    capsys.readouterr()
    code = run(["data", "check", str(tmp_path / "fake"), "--suite", "fgvc", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["complete"] else 2) and found["tasks"]
