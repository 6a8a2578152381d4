"""Suites, their fake copies and their checks; presets; the split files of FGVC and few-shot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitune.bench.presets import Preset, load_preset, preset_names
from vitune.bench.study.plan import Task
from vitune.bench.study.recipe import OfficialRecipe
from vitune.bench.suites.checking import check_suite
from vitune.bench.suites.split_lists import fewshot_table, fgvc_table
from vitune.bench.suites.suites import DEMO, FGVC, VTAB1K, suite_tasks
from vitune.bench.suites.tiny_copies import write_fake
from vitune.bench.tables.published import published_row
from vitune.data import load_splits, open_source
from vitune.errors import DataError, VituneError
from vitune.preprocessing import Preprocessing

SMALL = Preprocessing((16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("fakes")
    for suite in ("vtab1k", "fgvc", "fewshot"):
        write_fake(root / suite, suite, side=16)
    return {suite: root / suite for suite in ("vtab1k", "fgvc", "fewshot")}


def test_the_demo_suite_needs_no_files() -> None:
    found = suite_tasks("demo")
    assert len(found.tasks) == len(DEMO) == 6 and not found.missing
    for task in found.tasks:
        assert {"train", "test"} <= set(open_source(task.data).splits)
    assert [t.name for t in suite_tasks("demo", only=["count", "digits"]).tasks] == [
        "digits",
        "count",
    ]


def test_vtab_is_found_whole_and_loads(fakes: dict[str, Path]) -> None:
    found = suite_tasks("vtab1k", fakes["vtab1k"])
    assert len(found.tasks) == 19
    groups = [task.group for task in found.tasks]
    assert [groups.count(g) for g in ("natural", "specialized", "structured")] == [7, 4, 8]
    for name in ("cifar", "dtd", "kitti"):
        (task,) = suite_tasks("vtab1k", fakes["vtab1k"], only=[name]).tasks
        splits = load_splits(task.data, SMALL, seed=0)
        assert splits.train is not None and splits.test is not None
        assert (len(splits.train), len(splits.test)) == (128, 12)
        assert bool(splits.unseen_labels) == (name == "kitti")


def test_every_task_has_a_published_column() -> None:
    for suite, entries in (("vtab1k", VTAB1K), ("fgvc", FGVC)):
        row = published_row(suite, "rlrr", "in21k")
        assert row is not None and [entry.name for entry in entries if entry.name
                                    not in row.accuracies] == []  # fmt: skip


def test_a_root_that_lacks_tasks(fakes: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(fakes["vtab1k"] / "svhn", tmp_path / "svhn")
    shutil.copytree(fakes["vtab1k"] / "cifar", tmp_path / "cifar100")  # another release's name
    with pytest.raises(DataError, match=r"without caltech101, dtd.*--allow-missing"):
        suite_tasks("vtab1k", tmp_path)
    found = suite_tasks("vtab1k", tmp_path, allow_missing=True)
    assert [task.name for task in found.tasks] == ["cifar", "svhn"]
    assert len(found.missing) == 17
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected all tasks"):
        suite_tasks("vtab1k", tmp_path / "empty", allow_missing=True)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("vtab",), "--suite: got 'vtab'.*Did you mean vtab1k"),
        (("vtab1k",), "--data-root: got nothing"),
        (("vtab1k", "/nowhere"), "--data-root: got '/nowhere'"),
    ],
)
def test_unknown_suites_and_roots(arguments: tuple[str, ...], match: str) -> None:
    with pytest.raises(VituneError, match=match):
        suite_tasks(*arguments)


def test_an_unknown_task_gets_the_nearest_name() -> None:
    with pytest.raises(VituneError, match=r"got 'cuont'.*Did you mean count"):
        suite_tasks("demo", only=["cuont"])


def test_fgvc_has_one_class_map_over_all_splits(fakes: dict[str, Path], tmp_path: Path) -> None:
    found = suite_tasks("fgvc", fakes["fgvc"], lists=tmp_path)
    assert len(found.tasks) == 5
    splits = load_splits(found.tasks[0].data, SMALL, seed=0)
    assert splits.classes == ("1", "2", "3", "4")  # although validation lacks one
    assert splits.val is not None and splits.val.labels.max() == 2
    assert splits.trainval is None and splits.train is not None


def test_birds_files_and_class_folders_are_read(tmp_path: Path) -> None:
    birds = tmp_path / "birds"
    birds.mkdir()
    (birds / "images.txt").write_text("1 a/one bird.jpg\n2 b/two.jpg\n")
    (birds / "image_class_labels.txt").write_text("1 5\n2 9\n")
    (birds / "train_test_split.txt").write_text("1 1\n2 0\n")
    text = fgvc_table(birds, "images", tmp_path / "birds.csv").read_text()
    assert f"{birds}/images/a/one bird.jpg,5,train" in text and "b/two.jpg,9,test" in text
    (birds / "image_class_labels.txt").write_text("1 5\n")
    with pytest.raises(DataError, match=r"in images.txt alone"):
        fgvc_table(birds, "images", tmp_path / "birds.csv")
    (birds / "images.txt").write_text("1\n")
    with pytest.raises(DataError, match=r"line 1: got '1', expected two fields"):
        fgvc_table(birds, "images", tmp_path / "birds.csv")
    cars = tmp_path / "cars"
    for place in ("train/x/1.jpg", "val/x/2.jpg"):
        (cars / place).parent.mkdir(parents=True)
        (cars / place).touch()
    text = fgvc_table(cars, ".", tmp_path / "cars.csv").read_text()
    assert "1.jpg,x,train" in text and "2.jpg,x,test" in text


def test_dog_lists_are_read(tmp_path: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    for split, name in (("train", "n1/a.jpg"), ("test", "n2/b.jpg")):
        files = np.array([[name], ["n1/c.jpg"]], dtype=object)
        savemat(tmp_path / f"{split}_list.mat", {"file_list": files, "labels": [[1], [2]]})
    text = fgvc_table(tmp_path, "Images", tmp_path / "dogs.csv").read_text()
    assert "Images/n1/a.jpg,1,train" in text and "Images/n1/c.jpg,2,test" in text


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"without splits, expected train.json"):
        fgvc_table(tmp_path, ".", tmp_path / "x.csv")
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(DataError, match=r"got list, expected an object"):
        fgvc_table(tmp_path, ".", tmp_path / "x.csv")
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(DataError, match=r"expected JSON of path: class"):
        fgvc_table(tmp_path, ".", tmp_path / "x.csv")
    (tmp_path / "train.json").unlink()
    (tmp_path / "trainval.json").write_text(json.dumps({"a.jpg": 1}))
    (tmp_path / "test.json").write_text(json.dumps({"b.jpg": 1}))
    text = fgvc_table(tmp_path, ".", tmp_path / "x.csv").read_text()
    assert "a.jpg,1,train" in text and "b.jpg,1,test" in text


def test_few_shot_lists(fakes: dict[str, Path], tmp_path: Path) -> None:
    root = fakes["fewshot"]
    for shots in (2, 4):
        found = suite_tasks("fewshot", root, lists=tmp_path, shots=shots)
        assert [task.name for task in found.tasks] == [
            f"food101-{shots}shot",
            f"oxford_pets-{shots}shot",
        ]
        images = open_source(found.tasks[0].data)
        assert len(images.splits["train"]) == 4 * shots and len(images.splits["test"]) == 12
        assert all(record.image.is_file() for record in images.splits["train"])
    with pytest.raises(DataError, match=r"without lists of 16 shots"):
        suite_tasks("fewshot", root, lists=tmp_path)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/train_meta.list.num_shot_1.seed_0").write_text("a.jpg x\n")
    with pytest.raises(DataError, match=r"line 1: got 'a.jpg x'"):
        fewshot_table(tmp_path / "odd", 1, 0, tmp_path / "x.csv")
    (tmp_path / "odd/train_meta.list.num_shot_1.seed_0").write_text("a.jpg 0\n")
    with pytest.raises(DataError, match=r"without test_meta.list"):
        fewshot_table(tmp_path / "odd", 1, 0, tmp_path / "x.csv")


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("tasks:\n- {name: a, data: 'demo:count', group: g}\n- {name: b, data: x/}\n")
    found = suite_tasks(str(path), only=["a"])
    assert found.tasks == (Task(name="a", data="demo:count", group="g"),)
    with pytest.raises(VituneError, match=r"--tasks: got 'coutn'.*Did you mean count"):
        suite_tasks("demo:count", only=["coutn"])
    assert [task.name for task in suite_tasks("demo:count", only=["count"]).tasks] == ["count"]
    for text, match in (
        ("taks: []", "taks: unknown key. Did you mean tasks"),
        ("tasks: 3", "tasks: got 3, expected a list"),
        ("tasks: [{name: a}]", "data: got nothing"),
    ):
        path.write_text(text)
        with pytest.raises(VituneError, match=match):
            suite_tasks(str(path))


def test_a_check_says_what_is_odd(tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "vtab"
    write_fake(root, "vtab1k", side=16, overlap=["svhn"])
    shutil.rmtree(root / "dmlab")
    (root / "dtd" / "images" / "test" / "000 000.jpg").unlink()
    (root / "sun397" / "images" / "train800" / "000000.jpg").write_bytes(b"no picture")
    (root / "resisc45" / "test.txt").write_text("images/test/000000.jpg 45\n")
    (root / "eurosat" / "val200.txt").write_text("no label\n")
    found = {check.task: check for check in check_suite(root)}
    assert len(found) == 19
    assert found["dmlab"].status == "missing" and "NOAH" in found["dmlab"].remedy
    told = {name: " | ".join(check.problems) for name, check in found.items()}
    assert "train: 128 images instead of 800" in told["cifar"]
    assert "test: 1 files missing" in told["dtd"]
    assert "train: 1 of a sample cannot be read" in told["sun397"]
    assert "46 classes by the largest label, the task has 45" in told["resisc45"]
    assert "expected a path, a space and a label" in told["eurosat"]
    assert "1 images are in two splits" in told["svhn"]
    assert "1 classes that training never shows (7)" not in told["cifar"]
    assert "classes that training never shows" in told["kitti"] or found["kitti"].num_classes == 4
    assert found["cifar"].counts == {"train": 128, "val": 16, "trainval": 144, "test": 12}


def test_checks_of_the_other_suites(fakes: dict[str, Path]) -> None:
    birds = check_suite(fakes["fgvc"], "fgvc")[0]
    assert birds.problems == ("labels: 4 of the task's 200 classes",)
    assert [c.status for c in check_suite(fakes["fewshot"], "fewshot", shots=4)] == ["complete"] * 2
    with pytest.raises(VituneError, match=r"got 'demo', expected one with files"):
        check_suite(fakes["fgvc"], "demo")
    with pytest.raises(DataError, match=r"expected an existing folder"):
        check_suite("/nowhere")


def test_a_fake_never_overwrites(fakes: dict[str, Path]) -> None:
    with pytest.raises(VituneError, match=r"which exists, expected a new folder"):
        write_fake(fakes["fgvc"], "fgvc")
    with pytest.raises(VituneError, match=r"--suite: got 'demo'"):
        write_fake("x", "demo")


def test_an_overlapping_fake_is_refused_on_loading(tmp_path: Path) -> None:
    write_fake(tmp_path / "f", "fgvc", side=16, overlap=["cub"])
    tasks = suite_tasks("fgvc", tmp_path / "f", lists=tmp_path / "l").tasks
    with pytest.raises(DataError, match=r"expected splits that share no image"):
        load_splits(tasks[0].data, SMALL, seed=0)


EXPECTED_PRESETS = {
    *(f"{method}-vtab1k" for method in ("rlrr", "ssf", "hta", "arc", "lora", "pace")),
    *(f"{method}-fgvc" for method in ("rlrr", "ssf", "hta", "arc", "lora", "pace")),
    *("rlrr-fgvc-augreg", "fact_tk-vtab1k", "vpt_deep-vtab1k", "vpt_deep-fgvc"),
}


def test_all_presets_are_there() -> None:
    assert set(preset_names()) == EXPECTED_PRESETS and len(preset_names()) == 16
    with pytest.raises(VituneError, match=r"got 'rlr-vtab1k'.*Did you mean rlrr-vtab1k"):
        load_preset("rlr-vtab1k")


@pytest.mark.parametrize("name", sorted(EXPECTED_PRESETS))
def test_a_preset_is_a_study_under_both_protocols(name: str) -> None:
    preset = load_preset(name)
    entries = {"vtab1k": VTAB1K, "fgvc": FGVC}[preset.suite]
    tasks = [Task(name=entry.name, data="d", group=entry.group) for entry in entries]
    honest = preset.study(tasks, name=name)
    published = preset.study(tasks, name=name, protocol="as-published")
    assert len(honest.grid_of(honest.variants[0])) > 1  # the authors' choices are not taken over
    assert len(published.grid_of(published.variants[0])) == 1
    variant = published.variants[0]
    names = {entry.name for entry in entries}
    assert set(variant.task_settings) | set(variant.task_recipe) <= names
    for task in tasks:
        recipe = published.recipe_of(variant, task)
        assert set(recipe) == set(OfficialRecipe.model_fields)
        assert honest.recipe_of(honest.variants[0], task) == {}
    assert 0.69 < preset.expected["mean_tasks"] < 0.93 and preset.source and preset.deviations


@pytest.mark.parametrize(
    "name",
    [
        *(f"{method}-vtab1k" for method in ("rlrr", "ssf", "hta", "arc", "lora", "fact_tk")),
        *("vpt_deep-vtab1k", "rlrr-fgvc", "rlrr-fgvc-augreg", "vpt_deep-fgvc", "arc-fgvc"),
    ],
)
def test_expected_scores_are_those_of_the_tables(name: str) -> None:
    preset = load_preset(name)
    column = "in21k_augreg" if "augreg" in preset.backbone else "in21k"
    row = published_row(preset.suite, preset.method, column)
    assert row is not None and row.mean == pytest.approx(preset.expected["mean_tasks"])


def test_the_rlrr_recipe_is_the_published_one() -> None:
    preset = load_preset("rlrr-vtab1k")
    tasks = [Task(name=entry.name, data="d") for entry in VTAB1K]
    study = preset.study(tasks, name="x", protocol="as-published")
    by_name: dict[str, Any] = {}
    for task in study.tasks:
        config = study.config(study.variants[0], task, {}, seed=0, refit=True)
        dropout = study.recipe_of(study.variants[0], task)["element_dropout"]
        by_name[task.name] = (config.lr, dropout, config.weight_decay, config.augment)
    assert by_name["cifar"] == (3e-3, 0.1, 5e-5, "none")
    assert by_name["clevr_count"] == (5e-3, 0.5, 5e-5, "flip")
    assert by_name["oxford_flowers102"] == (3e-3, 0.3, 5e-2, "none")
    assert by_name["resisc45"] == (3e-3, 0.0, 5e-5, "none")


def test_a_flag_wins_over_a_preset() -> None:
    preset = load_preset("rlrr-vtab1k")
    tasks = [Task(name="cifar", data="d")]
    for protocol in ("honest", "as-published"):
        study = preset.study(tasks, name="x", protocol=protocol, overrides={"lr": 0.5}, epochs=3)
        variant = study.variants[0]
        for setting in study.grid_of(variant):
            config = study.config(variant, tasks[0], setting, seed=0, refit=False)
            assert (config.lr, config.epochs) == (0.5, 3)


def test_a_preset_with_an_unknown_key_or_recipe_is_refused() -> None:
    values = load_preset("rlrr-vtab1k").model_dump()
    with pytest.raises(VituneError, match=r"expekted: unknown key. Did you mean expected"):
        Preset.make({**values, "expekted": 1})
    odd = Preset.make({**values, "published": {"recipe": {"dropout": 0.1}}})
    with pytest.raises(VituneError, match=r"recipe: dropout: unknown option. Did you mean"):
        odd.variant("as-published")


def test_damaged_lists_of_fgvc_and_few_shot_releases(tmp_path: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    out, train, test = tmp_path / "o.csv", tmp_path / "train_list.mat", tmp_path / "test_list.mat"
    test.write_bytes(b"junk")
    for content, match in (
        ({"file_list": np.array(["a.jpg", "b.jpg"], object), "labels": [1, 2, 3]}, "equal length"),
        ({"labels": [1]}, "got 'file_list', expected a .mat file"),
    ):
        savemat(train, content)
        with pytest.raises(DataError, match=match):
            fgvc_table(tmp_path, "Images", out)
    train.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"train_list.mat: got .*expected a .mat file"):
        fgvc_table(tmp_path, "Images", out)
    for path in (train, test):
        savemat(path, {"file_list": np.array(["a.jpg"], object), "labels": [[1]]})
    assert "a.jpg,1,train" in fgvc_table(tmp_path, "Images", out).read_text()
    birds = tmp_path / "birds"
    birds.mkdir()
    for name in ("image_class_labels.txt", "train_test_split.txt"):
        (birds / name).write_text("1 1\n")
    (birds / "images.txt").write_bytes("1 Ä.jpg\n".encode("latin1"))
    with pytest.raises(DataError, match=r"images.txt: got .* expected UTF-8 text"):
        fgvc_table(birds, "images", out)
    (birds / "train_meta.list.num_shot_1.seed_0").write_bytes(b"\xff 1\n")
    with pytest.raises(DataError, match=r"seed_0: got .* expected UTF-8 text"):
        fewshot_table(birds, 1, 0, out)
