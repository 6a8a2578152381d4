"""load_splits and its neighbours: hold-out, sealed test, skipping, budgets, hashes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitune.data import (
    UNLABELLED,
    CacheSettings,
    Split,
    cache,
    load_labelled,
    load_splits,
    load_unlabelled,
    open_source,
)
from vitune.errors import DataError
from vitune.preprocessing import Preprocessing

Make = Callable[..., Path]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of everything that is decoded."""
    names: list[str] = []
    real = cache.decode_image

    def spy(image: object, decoding: object) -> object:
        names.append(str(image) if isinstance(image, Path) else image.name)  # type: ignore[attr-defined]
        return real(image, decoding)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "decode_image", spy)
    return names


def test_a_folder_above_the_class_folders_is_told_from_one_class(
    class_folders: Make, tmp_path: Path, preprocessing: Preprocessing
) -> None:
    class_folders("archive/images")
    where = re.escape(str(tmp_path / "archive" / "images"))
    with pytest.raises(DataError, match=rf"got one, 'images'.*are the classes, give {where}\."):
        load_splits(tmp_path / "archive", preprocessing, seed=0)


def test_hold_out_is_cut_by_seed_and_recorded(
    class_folders: Make, preprocessing: Preprocessing
) -> None:
    root = class_folders(splits=("train", "test"), each=10)
    one, same, other = (load_splits(root, preprocessing, seed=seed) for seed in (1, 1, 2))
    assert one.train and one.val and one.test and other.val and same.val
    assert (len(one.train), len(one.val), len(one.test)) == (16, 4, 20)
    assert one.val.class_counts == {"ant": 2, "bee": 2}
    assert one.held_out and (one.held_out.amount, one.held_out.seed) == (0.2, 1)
    assert one.held_out.num_images == 4
    assert one.val.paths == same.val.paths != other.val.paths
    assert not set(one.train.paths) & set(one.val.paths)


def test_own_validation_is_used_as_it_is(class_folders: Make, preprocessing: Preprocessing) -> None:
    root = class_folders(splits=("train", "val"), each=3)
    found = load_splits(root, preprocessing, seed=0)
    assert found.held_out is None and found.test is None
    assert found.train and found.val and (len(found.train), len(found.val)) == (6, 6)
    both = load_splits(root, preprocessing, seed=0, include=("trainval",))
    assert both.trainval and len(both.trainval) == 12 and both.train is None


def test_hold_out_can_be_counted_or_switched_off(
    class_folders: Make, preprocessing: Preprocessing
) -> None:
    root = class_folders(each=5)
    counted = load_splits(root, preprocessing, seed=0, val_fraction=3)
    assert counted.val and len(counted.val) == 3
    whole = load_splits(root, preprocessing, seed=0, val_fraction=0)
    assert whole.train and len(whole.train) == 10 and whole.val is whole.held_out is None
    refit = load_splits(root, preprocessing, seed=0, include=("trainval",))
    assert refit.trainval and len(refit.trainval) == 10 and refit.held_out is None


def test_test_pixels_are_decoded_only_when_asked_for(
    class_folders: Make, preprocessing: Preprocessing, decoded: list[str]
) -> None:
    root = class_folders(splits=("train", "test"))
    found = load_splits(root, preprocessing, seed=0, include=("train", "val"))
    assert found.test is None and len(decoded) == 8
    assert not [name for name in decoded if "/test/" in name]
    broken = root / "test" / "ant" / "0.png"
    broken.write_bytes(b"broken")
    load_splits(root, preprocessing, seed=0, include=("train", "val"))
    with pytest.raises(DataError, match=r"image '.*test.ant.0.png'"):
        load_splits(root, preprocessing, seed=0, include=("test",))


def test_a_class_with_one_image_is_named(
    class_folders: Make, picture: Make, preprocessing: Preprocessing
) -> None:
    root = class_folders(splits=("train", "test"))
    picture(root / "train" / "cow" / "only.png", 900)
    with pytest.raises(DataError, match=r"got one image of class 'cow', expected at least 2"):
        load_splits(root, preprocessing, seed=0)
    load_splits(root, preprocessing, seed=0, include=("test",))
    load_splits(root, preprocessing, seed=0, val_fraction=0)
    picture(root / "val" / "ant" / "v.png", 901)
    load_splits(root, preprocessing, seed=0)


def test_duplicates_in_training_are_counted_and_never_held_out(
    class_folders: Make, preprocessing: Preprocessing
) -> None:
    root = class_folders(each=6)
    for copy in ("x", "y", "z"):
        shutil.copy(root / "ant/0.png", root / f"ant/{copy}.png")
    for seed in range(5):
        found = load_splits(root, preprocessing, seed=seed, val_fraction=0.5)
        assert found.duplicates_in_train == 3 and found.train and found.val
        copies = [name for name in found.train.paths if Path(name).stem in "0xyz"]
        assert len([name for name in copies if "/ant/" in name]) == 4
        assert found.val.digests is not None and found.train.digests is not None
        assert not {d.tobytes() for d in found.val.digests} & {
            d.tobytes() for d in found.train.digests
        }


def test_a_table_that_lists_every_file_twice_is_divided(
    class_folders: Make, tmp_path: Path, preprocessing: Preprocessing
) -> None:
    files = sorted(class_folders(each=5).rglob("*.png"))
    rows = [f"{file},{file.parent.name}" for file in files for _ in range(2)]
    table = tmp_path / "twice.csv"
    table.write_text("\n".join(["path,label", *rows]) + "\n")
    found = load_splits(table, preprocessing, seed=0)
    assert found.train and found.val and (len(found.train), len(found.val)) == (16, 4)
    assert not set(found.train.paths) & set(found.val.paths)


def test_vtab_splits_and_refit(vtab_task: Make, preprocessing: Preprocessing) -> None:
    spec = f"vtab:{vtab_task()}"
    found = load_splits(spec, preprocessing, seed=0)
    assert found.train and found.val and found.test
    assert (len(found.train), len(found.val), len(found.test)) == (8, 4, 6)
    refit = load_splits(spec, preprocessing, seed=0, include=("trainval",)).trainval
    assert refit and len(refit) == 12 and "train800val200" in refit.paths[0]
    assert found.train.classes == refit.classes == ("0", "1", "2", "3")


def test_vtab_with_the_thousand_only(vtab_task: Make, preprocessing: Preprocessing) -> None:
    task = vtab_task()
    (task / "train800.txt").unlink()
    with pytest.raises(DataError, match=r"got val, trainval, test, expected a training split"):
        load_splits(f"vtab:{task}", preprocessing, seed=0)
    (task / "val200.txt").unlink()
    found = load_splits(f"vtab:{task}", preprocessing, seed=0, val_fraction=3)
    assert found.train and found.val and (len(found.train), len(found.val)) == (9, 3)


def test_skipping_lists_missing_and_broken_files(
    class_folders: Make, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    root = class_folders(splits=("train", "val"))
    (root / "train/ant/1.png").write_bytes(b"broken")
    lines = [
        f"{path.relative_to(tmp_path)},{path.parent.name},{path.parent.parent.name}"
        for path in sorted(root.rglob("*.png"))
    ]
    table = tmp_path / "list.csv"
    table.write_text("\n".join(["path,label,split", *lines, "photos/gone.png,ant,val"]))
    with pytest.raises(DataError, match=r"got 1 of 9 files missing"):
        load_splits(table, preprocessing, seed=0)
    found = load_splits(table, preprocessing, seed=0, skip_bad_images=True)
    assert [Path(name).name for name in found.skipped] == ["gone.png", "1.png"]
    assert found.train and found.val and (len(found.train), len(found.val)) == (7, 8)
    assert found.train.class_counts == {"ant": 3, "bee": 4}


def test_a_class_lost_to_broken_images_is_named(
    class_folders: Make, preprocessing: Preprocessing
) -> None:
    root = class_folders(splits=("train", "val"), each=2)
    for path in (root / "train/bee").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"class 'bee' of split 'train': got only images that"):
        load_splits(root, preprocessing, seed=0, skip_bad_images=True)


def test_overlap_is_refused_or_counted(class_folders: Make, preprocessing: Preprocessing) -> None:
    root = class_folders(splits=("train", "val"))
    shutil.copy(root / "train/ant/0.png", root / "val/ant/copy.png")
    with pytest.raises(DataError, match=r"got 1 image of val also in train"):
        load_splits(root, preprocessing, seed=0)
    assert load_splits(root, preprocessing, seed=0, allow_overlap=True).num_overlapping == 1


def test_include_is_checked(class_folders: Make, preprocessing: Preprocessing) -> None:
    with pytest.raises(DataError, match=r"include: got 'tset'.*Did you mean test\?"):
        load_splits(class_folders(), preprocessing, seed=0, include=("tset",))


def test_one_budget_covers_all_splits(
    class_folders: Make, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    root = class_folders(splits=("train", "val", "test"))
    one_split_mib = 8 * 8 * 8 * 3 / 2**20
    found = load_splits(
        root, preprocessing, seed=0, memory_budget_mib=2.5 * one_split_mib, cache_dir=tmp_path / "c"
    )
    kinds = [
        isinstance(split.images, np.memmap)
        for split in (found.train, found.val, found.test)
        if split
    ]
    assert kinds == [False, False, True]


def test_training_images_may_be_larger(class_folders: Make, preprocessing: Preprocessing) -> None:
    calls: list[tuple[int, int]] = []
    found = load_splits(
        class_folders(),
        preprocessing,
        seed=0,
        train_size=(10, 11),
        on_progress=lambda *call: calls.append(call),
    )
    assert found.train and found.train.images.shape[1:] == (10, 11, 3)
    assert found.val and found.val.images.shape[1:] == (8, 8, 3)
    assert calls == [(n, 8) for n in range(1, 9)]


def test_demos_load_at_any_size(preprocessing: Preprocessing) -> None:
    found = load_splits("demo:digits?train=40", preprocessing, seed=0, include=("train", "val"))
    assert found.train and found.val and (len(found.train), len(found.val)) == (32, 8)
    drawn = load_splits("demo:count?train=16&val=8&test=8", preprocessing, seed=0)
    assert drawn.test and drawn.test.images.shape == (8, 8, 8, 3)
    assert drawn.train and drawn.train.class_counts == dict.fromkeys(drawn.classes, 2)


def test_content_hash_says_which_pictures(
    class_folders: Make, preprocessing: Preprocessing
) -> None:
    spec = class_folders(each=3)
    split = load_splits(spec, preprocessing, seed=0, val_fraction=0).train
    larger = load_splits(spec, replace(preprocessing, image_size=(9, 9)), seed=0, val_fraction=0)
    assert split and larger.train
    order = np.arange(6)[::-1]
    assert split.subset(order).paths == split.paths[::-1]
    assert split.content_hash == split.subset(order).content_hash == larger.train.content_hash
    others = [
        split.subset(range(5)),
        replace(split, labels=split.labels[::-1].copy()),
        replace(split, digests=None),
    ]
    assert len({split.content_hash, *(other.content_hash for other in others)}) == 4
    pixels_only = replace(split, digests=None)
    assert pixels_only.content_hash == pixels_only.subset(order).content_hash


def test_a_split_that_does_not_fit_together() -> None:
    images, labels = np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 2])
    with pytest.raises(DataError, match=r"got 2 images, 2 labels and 1 paths"):
        Split("train", images, labels, ("a",), ("x",))
    with pytest.raises(DataError, match=r"labels of split 'train': got 2, expected less than"):
        Split("train", images, labels, ("a", "b"), ("x", "y"))


def test_scoring_uses_the_models_class_order(
    class_folders: Make, preprocessing: Preprocessing
) -> None:
    flat = class_folders("flat", each=2)
    split, skipped = load_labelled(flat, preprocessing, classes=("bee", "cow", "ant"))
    assert split.name == "all" and split.labels.tolist() == [2, 2, 0, 0] and skipped == ()
    assert split.class_counts == {"bee": 2, "cow": 0, "ant": 2}
    listed, _ = load_labelled(flat, preprocessing, classes=["bee", "cow", "ant"])
    assert listed.classes == split.classes  # `evaluate` compares them with the run's
    both = class_folders("both", splits=("train", "test"), each=2)
    split, _ = load_labelled(both, preprocessing, classes=("ant", "bee"))
    assert split.name == "test" and len(split) == 4
    with pytest.raises(DataError, match=r"got 'val', expected an existing split"):
        load_labelled(both, preprocessing, classes=("ant", "bee"), split="val")
    with pytest.raises(DataError, match=r"got 'bee', expected classes the model was"):
        load_labelled(open_source(flat), preprocessing, classes=("ant",))


def test_unlabelled_images_for_prediction(
    class_folders: Make, preprocessing: Preprocessing
) -> None:
    root = class_folders(each=2)
    (root / "ant/0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"image '.*ant.0.png'"):
        load_unlabelled(root, preprocessing)
    split, skipped = load_unlabelled(
        root, preprocessing, settings=CacheSettings(skip_bad_images=True)
    )
    assert (len(split), len(skipped)) == (3, 1) and split.name == "predict"
    assert (split.labels == UNLABELLED).all() and split.class_counts == {}
    assert len(split.content_hash) == 64
    assert len(load_unlabelled(root / "bee/0.png", preprocessing)[0]) == 1


def test_names_that_are_not_utf8(
    class_folders: Make, picture: Make, preprocessing: Preprocessing
) -> None:
    root = class_folders(each=2)
    odd = Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9"))
    for number in range(3):
        made = picture(root / "spare.png", 500 + number, (12, 10 + number))
        odd.mkdir(exist_ok=True)
        made.rename(Path(os.fsdecode(os.fsencode(odd) + b"/\xff%d.png" % number)))
    for budget in (0, 10):
        found = load_splits(root, preprocessing, seed=0, memory_budget_mib=budget)
        assert found.train and len(found.classes) == 3 and len(found.train.content_hash) == 64
    next(odd.iterdir()).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"got UnidentifiedImageError"):
        load_splits(root, preprocessing, seed=0)


def test_importing_the_room_is_light() -> None:
    code = (  # the package above imports PEFT by design, so the room is imported beside it
        "import importlib.util, sys, types\n"
        "package = types.ModuleType('vitune')\n"
        "found = importlib.util.find_spec('vitune')\n"
        "package.__path__ = found.submodule_search_locations\n"
        "sys.modules['vitune'] = package\n"
        "import vitune.data\n"
        "heavy = {'transformers', 'peft', 'matplotlib', 'pandas', 'sklearn', 'pyarrow'}\n"
        "print(*sorted(heavy & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_real_vtab_task(shared_dir: Path, preprocessing: Preprocessing) -> None:
    found = load_splits(
        f"vtab:{shared_dir}/data/vtab-1k/cifar", preprocessing, seed=0, include=("train", "val")
    )
    assert found.train and found.val and (len(found.train), len(found.val)) == (800, 200)
    assert len(found.classes) == 100 and found.classes[0] == "apple"
    assert (found.num_overlapping, found.duplicates_in_train, found.skipped) == (0, 0, ())


def test_real_photographs(shared_dir: Path, preprocessing: Preprocessing) -> None:
    found = load_splits(
        shared_dir / "data" / "sign-digits", preprocessing, seed=0, include=("train", "val")
    )
    assert found.train and found.val and (len(found.train), len(found.val)) == (800, 200)
    assert found.classes == tuple("0123456789") and found.test is None
