"""Images that belong together: found in paths and tables, never divided, told where they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitune.cli import run
from vitune.data import (
    inspect_images,
    linked,
    load_splits,
    one_per_group,
    open_source,
    with_groups,
)
from vitune.data.grouping import hold_out_groups
from vitune.errors import DataError
from vitune.preprocessing import Preprocessing

Make = Callable[..., Path]


@pytest.fixture
def animals(tmp_path: Path, picture: Make) -> Path:
    """<class>/<animal>_<n>.png, six animals of each class and three pictures of each."""
    root = tmp_path / "animals"
    for label, names in (("cat", "abcdef"), ("dog", "uvwxyz")):
        for name in names:
            for number in range(3):
                picture(root / label / f"{name}_{number}.png", ord(name) * 10 + number)
    return root


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [(r"[a-z]_", "a_"), (r"([a-z])_\d", "a"), (r"(\w+)/([a-z])_", "cat/a"), (r"^cat|^dog", "cat")],
)
def test_a_pattern_finds_a_group_in_every_path(animals: Path, pattern: str, expected: str) -> None:
    records = with_groups(open_source(animals), pattern).splits["all"]
    assert records[0].group == expected
    assert len({record.group for record in records}) == (2 if "dog" in pattern else 12)


def test_the_folder_s_own_path_is_not_searched(animals: Path) -> None:
    """Whatever the folder is called, its name is in every path and would make one group."""
    with pytest.raises(DataError, match=r"finds nothing in 'cat/a_0\.png'"):
        with_groups(open_source(animals), "animals")


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("[", "expected a regular expression"),
        ("x*", "finds nothing in"),
        ("snail", "finds nothing in 'cat/a_0.png'"),
        ("png", "finds 'png' in every path, expected several groups"),
        (".+", "puts each of the 36 images into its own group"),
    ],
)
def test_a_pattern_that_does_not_group_is_refused(animals: Path, pattern: str, told: str) -> None:
    with pytest.raises(DataError) as error:
        load_splits(animals, SMALL, seed=0, groups=pattern)
    assert told in str(error.value)


SMALL = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_on_both_sides(seed: int) -> None:
    """Groups of one class and of several, of very different sizes."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(60), rng.integers(1, 12, 60))
    of_group = rng.integers(0, 4, 60)
    labels = np.where(rng.random(len(groups)) < 0.2, 3, of_group[groups])
    train, val = hold_out_groups(labels, groups, 0.2, seed)
    assert not set(groups[train]) & set(groups[val])
    assert sorted([*train, *val]) == list(range(len(labels)))
    shares = np.bincount(labels[val], minlength=4) / np.bincount(labels, minlength=4)
    assert np.abs(shares - 0.2).max() < 0.08
    again = hold_out_groups(labels, groups, round(0.2 * len(labels)), seed)
    assert (
        again[1].tolist()
        == hold_out_groups(labels, groups, len(val) / len(labels), seed)[1].tolist()
        or abs(len(again[1]) - len(val)) < 12
    )


def test_large_groups_are_held_out_rather_than_none() -> None:
    """With two objects of each class one must validate, though that is half of the images."""
    labels, groups = np.repeat([0, 1], 20), np.repeat(np.arange(4), 10)
    train, val = hold_out_groups(labels, groups, 0.2, 0)
    assert np.bincount(labels[val]).tolist() == np.bincount(labels[train]).tolist() == [10, 10]


def test_a_class_of_one_group_stays_in_training_and_is_told(
    animals: Path, preprocessing: Preprocessing
) -> None:
    for number in range(3):
        (animals / "owl").mkdir(exist_ok=True)
        shutil.copy(animals / "cat" / f"a_{number}.png", animals / "owl" / f"o_{number}.png")
        (animals / "owl" / f"o_{number}.png").write_bytes(
            (animals / "dog" / f"z_{number}.png").read_bytes()
        )
        (animals / "dog" / f"z_{number}.png").unlink()
    splits = load_splits(animals, preprocessing, seed=0, groups=r"([a-z])_\d")
    assert splits.train is not None and splits.val is not None
    assert splits.train.class_counts["owl"] == 3 and splits.val.class_counts["owl"] == 0
    (told,) = [remark for remark in splits.remarks if remark.kind == "lone_groups"]
    assert told.names == ("owl",) and not told.is_fault


def test_nothing_to_hold_out_is_refused() -> None:
    with pytest.raises(DataError, match="2 groups, none of which can be held out"):
        hold_out_groups(np.repeat([0, 1], 5), np.repeat([0, 1], 5), 0.2, 0)


def test_what_shares_any_key_is_linked() -> None:
    assert linked("aabc", [1, 2, 2, 3]).tolist() == [0, 0, 0, 1]
    assert len(set(linked("abcd", "wxyz").tolist())) == 4


def test_copies_of_an_image_join_their_groups(animals: Path, preprocessing: Preprocessing) -> None:
    """Otherwise a picture filed under two animals is on both sides for some seed."""
    shutil.copy(animals / "cat" / "a_0.png", animals / "cat" / "b_9.png")
    records = with_groups(open_source(animals), r"(\w+)/([a-z])_").splits["all"]
    labels = [record.label for record in records]
    groups = np.unique([record.group for record in records], return_inverse=True)[1]
    divided = {"as told": 0, "linked": 0}
    for seed in range(12):
        splits = load_splits(animals, preprocessing, seed=seed, groups=r"(\w+)/([a-z])_")
        assert splits.val is not None
        names = {Path(path).name[0] for path in splits.val.paths if "cat" in path}
        divided["linked"] += len(names & {"a", "b"}) == 1
        _, val = hold_out_groups(labels, groups, 0.2, seed)
        divided["as told"] += len({records[at].group for at in val} & {"cat/a", "cat/b"}) == 1
    assert divided["linked"] == 0 < divided["as told"]


def test_a_column_names_groups(animals: Path, tmp_path: Path, preprocessing: Preprocessing) -> None:
    lines = [
        f"{path},{path.parent.name},{path.stem[0]}" for path in sorted(animals.glob("*/*.png"))
    ]
    table = tmp_path / "list.csv"
    table.write_text("\n".join(["path,label,group", *lines]))
    splits = load_splits(table, preprocessing, seed=0)
    assert splits.train is not None and splits.val is not None and splits.held_out is not None
    assert splits.held_out.num_groups == len({Path(path).name[0] for path in splits.val.paths})
    assert splits.train.groups is not None and splits.val.groups is not None
    assert not set(splits.train.groups) & set(splits.val.groups)
    part = splits.train.subset([0, 1, 5])
    assert part.groups is not None
    assert part.groups.tolist() == splits.train.groups[[0, 1, 5]].tolist()
    table.write_text("path,label,group\n" + lines[0].rpartition(",")[0] + ",\n")
    with pytest.raises(DataError, match=r"column 'group' .* got an empty cell"):
        open_source(table)


def test_without_groups_nothing_changes(animals: Path, preprocessing: Preprocessing) -> None:
    splits = load_splits(animals, preprocessing, seed=0)
    assert splits.train is not None and splits.held_out is not None
    assert splits.train.groups is None and splits.held_out.num_groups is None


def test_one_image_of_each_group_is_drawn(animals: Path, preprocessing: Preprocessing) -> None:
    splits = load_splits(animals, preprocessing, seed=0, groups=r"(\w+)/([a-z])_")
    assert splits.train is not None and splits.train.groups is not None
    drawn = [one_per_group(splits.train, seed) for seed in range(3)]
    for split in drawn:
        assert sorted(split.groups) == sorted(set(splits.train.groups))  # type: ignore[arg-type]
    assert len({split.paths for split in drawn}) > 1
    plain = load_splits(animals, preprocessing, seed=0).train
    assert plain is not None and one_per_group(plain) is plain


def test_data_check_names_groups_in_two_splits(
    animals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "divided"
    for path in animals.glob("*/*.png"):
        part = "test" if path.name in ("a_2.png", "z_1.png", "z_2.png") else "train"
        (root / part / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / part / path.parent.name)
    assert inspect_images(root).remarks == ()
    assert run(["data", "check", str(root), "--groups", r"[a-z]/([a-z])_", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    (told,) = found["remarks"]
    assert told["kind"] == "divided_groups" and told["is_fault"]
    assert told["names"] == ["a (train 2, test 1)", "z (train 1, test 2)"]
    assert [split["num_groups"] for split in found["splits"]] == [2, 12]
    assert run(["data", "check", str(root), "--groups", r"[a-z]/([a-z])_"]) == 2
    assert "groups" in capsys.readouterr().out.splitlines()[0]


def test_data_check_counts_a_group_of_three_splits_once(animals: Path, tmp_path: Path) -> None:
    root, pictures = tmp_path / "divided", sorted(animals.glob("*/*.png"))
    places = ("train/one/x_0.png", "val/one/x_1.png", "test/one/x_2.png", "test/one/y_0.png")
    for place, picture in zip(places, pictures, strict=False):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, root / place)
    found = inspect_images(root, groups="[xy]").remarks
    (told,) = (remark for remark in found if remark.kind == "divided_groups")
    assert told.names == ("x (train 1, val 1, test 1)",)
    assert told.text.startswith("1 group in more than one split")


def test_groups_of_a_benchmark_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    told = refused("data", "check", tmp_path, "--suite", "vtab1k", "--groups", "x")
    assert "--groups: got it with --suite" in told
