"""Named lists of tasks: the tasks of each suite, with folder and group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitune.bench.study.plan import Task
from vitune.bench.suites.split_lists import fewshot_names, fewshot_table, fgvc_table
from vitune.bench.suites.suite_names import SUITES
from vitune.data import is_source, spec_name
from vitune.errors import DataError, VituneError, nearest
from vitune.training import read_yaml


@dataclass(frozen=True)
class Entry:
    """One task of a suite.

    Args:
        name: as in published tables.
        group: tasks of a group are averaged together.
        num_classes: of the task.
        num_test: images of the test split; None if releases differ.
        folders: names under the root, the first one preferred.
        image_folder: below the task's folder, where lists are relative to it.
    """

    name: str
    group: str | None
    num_classes: int
    num_test: int | None = None
    folders: tuple[str, ...] = ()
    image_folder: str = "."


def _vtab(group: str, *tasks: tuple[str, int, int]) -> list[Entry]:
    return [Entry(name, group, classes, test, (name,)) for name, classes, test in tasks]


VTAB1K: tuple[Entry, ...] = (
    Entry("cifar", "natural", 100, 10000, ("cifar", "cifar100")),
    *_vtab(
        "natural",
        ("caltech101", 102, 6084),
        ("dtd", 47, 1880),
        ("oxford_flowers102", 102, 6149),
        ("oxford_iiit_pet", 37, 3669),
        ("svhn", 10, 26032),
        ("sun397", 397, 21750),
    ),
    *_vtab(
        "specialized",
        ("patch_camelyon", 2, 32768),
        ("eurosat", 10, 5400),
        ("resisc45", 45, 6300),
        ("diabetic_retinopathy", 5, 42670),
    ),
    *_vtab(
        "structured",
        ("clevr_count", 8, 15000),
        ("clevr_dist", 6, 15000),
        ("dmlab", 6, 22735),
        ("kitti", 4, 711),
        ("dsprites_loc", 16, 73728),
        ("dsprites_ori", 16, 73728),
        ("smallnorb_azi", 18, 12150),
        ("smallnorb_ele", 9, 12150),
    ),
)

FGVC: tuple[Entry, ...] = (
    Entry("cub", None, 200, None, ("CUB_200_2011", "cub"), "images"),
    Entry("nabirds", None, 555, None, ("NABirds", "nabirds"), "images"),
    Entry("oxford_flowers", None, 102, None, ("OxfordFlowers", "OxfordFlower", "oxfordflower")),
    Entry("stanford_dogs", None, 120, None, ("StanfordDogs", "stanforddogs"), "Images"),
    Entry("stanford_cars", None, 196, None, ("StanfordCars", "stanfordcars")),
)

DEMO: tuple[tuple[str, str, str], ...] = (
    ("digits", "real", "demo:digits?train=1000"),
    ("count", "drawn", "demo:count"),
    ("distance", "drawn", "demo:distance"),
    ("location", "drawn", "demo:location"),
    ("orientation", "drawn", "demo:orientation"),
    ("azimuth", "drawn", "demo:azimuth"),
)

SOURCES = {
    "vtab1k": (
        "the 'processed' VTAB-1k export of the NOAH project (github.com/ZhangYuanhan-AI/NOAH, "
        "data preparation), one folder per task with images/ and four lists"
    ),
    "fgvc": (
        "the data sets from their own sites and the JSON splits of the VPT project "
        "(github.com/KMnP/vpt, data preparation)"
    ),
    "fewshot": (
        "the few-shot lists and images of the NOAH project (github.com/ZhangYuanhan-AI/NOAH)"
    ),
}


@dataclass(frozen=True)
class SuiteTasks:
    """Tasks ready for a study.

    Args:
        tasks: the tasks that exist.
        missing: names of those the data root lacks.
    """

    tasks: tuple[Task, ...]
    missing: tuple[str, ...] = ()


def suite_tasks(
    suite: str,
    root: str | Path | None = None,
    *,
    lists: str | Path = "lists",
    only: Sequence[str] = (),
    allow_missing: bool = False,
    shots: int = 16,
    list_seed: int = 0,
) -> SuiteTasks:
    """The tasks of a suite found under a data root.

    Args:
        suite: one of SUITES, a YAML file with a list `tasks` (name, data, group), or a data source
            (`vtab:ROOT/TASK`, a folder, ...), which is a suite of one task.
        root: data root; not needed for the demo suite.
        lists: folder into which split tables of suites without a source of their own are written.
        only: names to keep; empty keeps all.
        allow_missing: leave out tasks that the root lacks instead of refusing.
        shots, list_seed: of the few-shot lists.

    Raises:
        VituneError: unknown suite or task (with the nearest names), or tasks missing.
    """
    if suite.endswith((".yaml", ".yml")):
        return _only(only, _custom(suite))
    if suite not in SUITES and is_source(suite):
        return _only(only, [Task(name=spec_name(suite), data=suite)])
    if suite not in SUITES:
        raise VituneError(
            f"--suite: got {suite!r}, expected a known one, a .yaml file or a data source. "
            f"{nearest(suite, SUITES)}"
        )
    if suite == "demo":
        return _only(only, [Task(name=n, group=g, data=d) for n, g, d in DEMO])
    base = _root(suite, root)
    if suite == "fewshot":
        return _fewshot(base, Path(lists), only, shots, list_seed)
    entries = VTAB1K if suite == "vtab1k" else FGVC
    chosen = _chosen(only, entries)
    tasks, missing = [], []
    for entry in entries:
        if entry.name in chosen:
            folder = folder_of(base, entry)
            if folder is None:
                missing.append(entry.name)
            else:
                tasks.append(_task(suite, entry, folder, Path(lists)))
    if missing and (not allow_missing or not tasks):
        raise DataError(
            f"--data-root: got {str(base)!r} without {', '.join(missing)}, expected all tasks of "
            f"{suite}. 'vitune data check {base} --suite {suite}' says how to get them; "
            "--allow-missing continues without them."
        )
    return SuiteTasks(tuple(tasks), tuple(missing))


def folder_of(root: Path, entry: Entry) -> Path | None:
    """The task's folder under `root`, by the first of its names that exists."""
    return next((root / name for name in entry.folders if (root / name).is_dir()), None)


def _task(suite: str, entry: Entry, folder: Path, lists: Path) -> Task:
    if suite == "vtab1k":
        return Task(name=entry.name, group=entry.group, data=f"vtab:{folder}")
    table = fgvc_table(folder, entry.image_folder, lists / f"{entry.name}.csv")
    return Task(name=entry.name, group=entry.group, data=str(table))


def _fewshot(
    root: Path, lists: Path, only: Sequence[str], shots: int, list_seed: int
) -> SuiteTasks:
    names = fewshot_names(root, shots, list_seed)
    if not names:
        raise DataError(
            f"--data-root: got {str(root)!r} without lists of {shots} shots and seed {list_seed}, "
            f"expected NAME/train_meta.list.num_shot_{shots}.seed_{list_seed} below it."
        )
    entries = [Entry(name, None, 0) for name in names]
    chosen = _chosen(only, entries)
    return SuiteTasks(
        tuple(
            Task(
                name=f"{name}-{shots}shot",
                data=str(
                    fewshot_table(
                        root / name, shots, list_seed, lists / f"{name}-{shots}-{list_seed}.csv"
                    )
                ),
                shots=shots,
                refit=False,
            )
            for name in names
            if name in chosen
        )
    )


def _custom(path: str) -> list[Task]:
    """The tasks of a user's own YAML file."""
    values = read_yaml(path, "--suite")
    odd = sorted(set(values) - {"tasks"})
    if odd:
        raise VituneError(f"{path}: {odd[0]}: unknown key. {nearest(odd[0], ['tasks'])}")
    given: Any = values.get("tasks")
    if not isinstance(given, list) or not all(isinstance(task, dict) for task in given):
        raise VituneError(f"{path}: tasks: got {given!r}, expected a list of name, data, group.")
    return [Task.make(task) for task in given]


def _root(suite: str, root: str | Path | None) -> Path:
    if root is None:
        raise VituneError(f"--data-root: got nothing, expected the folder of {SOURCES[suite]}.")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DataError(
            f"--data-root: got {str(root)!r}, expected an existing folder with {SOURCES[suite]}."
        )
    return path.absolute()


def _only(names: Sequence[str], tasks: Sequence[Task]) -> SuiteTasks:
    chosen = _chosen(names, tasks)
    return SuiteTasks(tuple(task for task in tasks if task.name in chosen))


def _chosen(only: Sequence[str], tasks: Iterable[Task | Entry]) -> set[str]:
    """The names to keep.

    Raises:
        VituneError: no task has that name.
    """
    names = [task.name for task in tasks]
    for name in only:
        if name not in names:
            raise VituneError(
                f"--tasks: got {name!r}, expected a task of the suite. {nearest(name, names)}"
            )
    return set(only or names)
