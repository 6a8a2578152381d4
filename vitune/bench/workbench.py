"""What one process keeps between cells: the backbone's facts and a few tasks' images."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from vitune.backbones import find_sites, fingerprint, load_backbone
from vitune.data import Record, Split, Splits, augmentation, load_labelled, load_splits, open_source
from vitune.preprocessing import Preprocessing
from vitune.training import TrainConfig

KEPT_TASKS = 2

T = TypeVar("T")


@dataclass(frozen=True)
class BackboneFacts:
    """What is known of a backbone before any run.

    Args:
        fingerprint: of all frozen weights but the head's.
        preprocessing: how its images are prepared.
    """

    fingerprint: str
    preprocessing: Preprocessing


@dataclass(frozen=True, eq=False)
class TaskData:
    """The images of a task that training may see, and what is known of the test split unopened.

    Args:
        selection: train and val.
        refit: training and validation together as `train`.
        test_listing: hash over the test split's file names, sizes and labels; None without one.
    """

    selection: Splits
    refit: Splits
    test_listing: str | None

    def hashes(self, *, refit: bool, scored_on: str) -> dict[str, str]:
        """Hashes of the splits that decide the result of a run."""
        splits = self.refit if refit else self.selection
        assert splits.train is not None
        found = {"train": splits.train.content_hash}
        if scored_on == "test":
            assert self.test_listing is not None
            found["test"] = self.test_listing
        elif splits.val is not None:
            found["val"] = splits.val.content_hash
        return found


class Workbench:
    """Decodes each task once and loads each backbone's facts once, for all cells of a process."""

    def __init__(self, cache_dir: Path | None = None) -> None:
        self.cache_dir = cache_dir
        self._facts: dict[tuple[str, str | None, int | None], BackboneFacts] = {}
        self._tasks: OrderedDict[tuple[str, ...], TaskData] = OrderedDict()
        self._tests: OrderedDict[tuple[str, ...], Split] = OrderedDict()

    def facts(self, config: TrainConfig) -> BackboneFacts:
        """The backbone's fingerprint, and how `config` prepares images for it."""
        key = (config.backbone, config.checkpoint, config.image_size)
        if key not in self._facts:
            backbone = load_backbone(
                config.backbone, checkpoint=config.checkpoint, image_size=config.image_size
            )
            sites = find_sites(backbone.model)
            names = [site.name for site in sites if site.role not in ("block", "head")]
            self._facts[key] = BackboneFacts(
                fingerprint(backbone.model, names), backbone.preprocessing
            )
        known = self._facts[key]
        return replace(known, preprocessing=config.prepared(known.preprocessing))

    def task(self, config: TrainConfig, split_seed: int) -> TaskData:
        """The task's training and validation images; its test images stay closed."""
        prepared = self.facts(config).preprocessing
        train_size = augmentation(config.augment, prepared.image_size).train_size(
            prepared.image_size
        )
        key = (*_data_key(config, prepared), str(split_seed), str(train_size))

        def load() -> TaskData:
            listed = open_source(config.data)
            splits = load_splits(
                listed,
                prepared,
                seed=split_seed,
                val_fraction=config.val_fraction,
                include=("train", "val", "trainval"),
                train_size=train_size,
                skip_bad_images=config.skip_bad_images,
                memory_budget_mib=config.memory_budget_mib,
                cache_dir=self.cache_dir,
            )
            test = listed.splits.get("test")
            return TaskData(
                selection=replace(splits, trainval=None),
                refit=replace(splits, train=splits.trainval, val=None, trainval=None),
                test_listing=None if test is None else _listing_hash(test, listed.classes),
            )

        return _kept(self._tasks, key, load)

    def open_test(self, config: TrainConfig, classes: tuple[str, ...]) -> Split:
        """The test split, decoded; for a run whose training and selection are over."""
        prepared = self.facts(config).preprocessing

        def load() -> Split:
            return load_labelled(config.data, prepared, classes=classes, split="test")[0]

        return _kept(self._tests, _data_key(config, prepared), load)


def _data_key(config: TrainConfig, prepared: Preprocessing) -> tuple[str, ...]:
    return config.data, str(prepared), str(config.val_fraction), str(config.skip_bad_images)


def _kept(cache: OrderedDict[tuple[str, ...], T], key: tuple[str, ...], load: Callable[[], T]) -> T:
    """The value at `key`, loaded where it is not there; only the latest few stay."""
    if key not in cache:
        while len(cache) >= KEPT_TASKS:
            cache.popitem(last=False)
        cache[key] = load()
    cache.move_to_end(key)
    return cache[key]


def _listing_hash(records: Sequence[Record], classes: tuple[str, ...]) -> str:
    """sha256 over (name, size, class) of every record, or a drawing's content for its size."""
    lines = []
    for record in records:
        if isinstance(record.image, Path):
            what = f"{'/'.join(record.image.parts[-2:])} {_size(record.image)}"
        else:
            what = hashlib.sha256(record.image.content).hexdigest()
        lines.append(f"{what} {classes[record.label]}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
