"""What one process caches between cells: the backbone's facts and a few tasks' images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from vitune.backbones import find_sites, fingerprint, identity, load_backbone
from vitune.bench.study.file_hashes import (
    combined,
    hash_of,
    hashes_of_files,
    hashes_of_source,
    hashes_of_training,
)
from vitune.data import (
    Decoding,
    ImageList,
    Split,
    Splits,
    augmentation,
    check_splits,
    load_labelled,
    load_splits,
    open_source,
    present,
    require_readable,
)
from vitune.errors import DataError, VituneError
from vitune.preprocessing import Preprocessing
from vitune.training import TrainConfig

KEPT_TASKS = 2

T = TypeVar("T")


@dataclass(frozen=True)
class BackboneFacts:
    """The facts about a backbone before any run.

    Args:
        fingerprint: of all frozen weights but the head's, as adapters record it.
        identity: of every tensor, the preprocessing and the configuration, bit by bit.
        preprocessing: how its images are prepared.
        files: content hash by path of the local files it was read from.
    """

    fingerprint: str
    identity: str
    preprocessing: Preprocessing
    files: Mapping[Path, str]


class TaskData:
    """The images of a task for training, each split decoded on first use.

    Args:
        load: decodes the splits of the names given.
        test: hash of the test split's files, unopened; None without one.
        has_val: whether the source has a validation split of its own.
        source: hash over all files and labels of the source, in order, whether decodable or not.
    """

    def __init__(
        self,
        load: Callable[[Sequence[str]], Splits],
        *,
        test: str | None,
        has_val: bool,
        source: str,
    ) -> None:
        self._load, self.test, self.has_val, self.source = load, test, has_val, source

    @cached_property
    def selection(self) -> Splits:
        """Train and val."""
        return self._load(("train", "val"))

    @cached_property
    def refit(self) -> Splits:
        """Training and validation together as `train`."""
        splits = self._load(("trainval",))
        return replace(splits, train=splits.trainval, val=None, trainval=None)

    def refits(self, asked: bool) -> bool:
        """Whether final runs train on validation images; those held out of training always rejoin.

        Args:
            asked: whether to train also on the source's own validation split.
        """
        return asked or not self.has_val

    def divided(self, *, refit: bool) -> Splits:
        """The splits that a run trains and validates on."""
        return self.refit if refit else self.selection

    def hashes(self, *, refit: bool, scored_on: str) -> dict[str, str]:
        """Hashes of the splits that affect the result of a run."""
        found = dict(self._of_refit if refit else self._of_selection)
        if scored_on == "test":
            found.pop("val", None)
            assert self.test is not None
            found["test"] = self.test
        return found

    @cached_property
    def _of_refit(self) -> dict[str, str]:
        return hashes_of_training(self.refit)

    @cached_property
    def _of_selection(self) -> dict[str, str]:
        return hashes_of_training(self.selection)


class Workbench:
    """Decodes each task once and loads each backbone's facts once, for all cells of a process."""

    def __init__(self, cache_dir: Path | None = None) -> None:
        self.cache_dir = cache_dir
        self._facts: dict[tuple[str, str | None, int | None], BackboneFacts] = {}
        self._tasks: OrderedDict[tuple[str, ...], TaskData] = OrderedDict()
        self._tests: OrderedDict[tuple[str, ...], Split] = OrderedDict()

    def forget(self) -> None:
        """Read everything again on next use."""
        self._facts.clear()
        self._tasks.clear()
        self._tests.clear()

    def forget_changed(self) -> None:
        """Read again, on next use, whatever has changed on disk."""
        listed = {key[0]: _listing(key[0]) for key in (*self._tasks, *self._tests)}
        for key, data in list(self._tasks.items()):
            if combined(listed[key[0]]) != data.source:
                del self._tasks[key]
        for key, split in list(self._tests.items()):
            if listed[key[0]].get("test") != hash_of(split):
                del self._tests[key]
        for name, facts in list(self._facts.items()):
            try:
                unchanged = hashes_of_files(*name[:2]) == facts.files
            except (VituneError, OSError):
                unchanged = False
            if not unchanged:
                del self._facts[name]

    def facts(self, config: TrainConfig) -> BackboneFacts:
        """The backbone's identity, and how `config` prepares images for it."""
        key = (config.backbone, config.checkpoint, config.image_size)
        if key not in self._facts:
            files = hashes_of_files(config.backbone, config.checkpoint)
            backbone = load_backbone(
                config.backbone, checkpoint=config.checkpoint, image_size=config.image_size
            )
            sites = find_sites(backbone.model)
            names = [site.name for site in sites if site.role not in ("block", "head")]
            self._facts[key] = BackboneFacts(
                fingerprint(backbone.model, names),
                identity(backbone),
                backbone.preprocessing,
                files,
            )
        known = self._facts[key]
        return replace(known, preprocessing=config.prepared(known.preprocessing))

    def check(self, config: TrainConfig, *, allow_overlap: bool = False) -> ImageList:
        """Check that the task's source can be used, before anything is trained on it.

        Splits must not share images, and every file of the test split must be intact: each is
        decoded once and its pixels are discarded.

        Raises:
            DataError: raised by `check_splits` or `require_readable`.
        """
        listed = open_source(config.data)
        test = listed.splits.get("test", ())
        require_readable(test, Decoding(self.facts(config).preprocessing))
        check_splits(present(listed), allow_overlap=allow_overlap)
        return listed

    def task(
        self, config: TrainConfig, split_seed: int, *, allow_overlap: bool = False
    ) -> TaskData:
        """The task's training and validation images; its test images stay sealed."""
        prepared = self.facts(config).preprocessing
        train_size = augmentation(config.augment, prepared.image_size).train_size(
            prepared.image_size
        )
        key = (
            *_data_key(config, prepared), str(split_seed), str(train_size), str(allow_overlap)
        )  # fmt: skip

        def load() -> TaskData:
            listed = open_source(config.data)

            def divided(include: Sequence[str]) -> Splits:
                return load_splits(
                    listed,
                    prepared,
                    seed=split_seed,
                    val_fraction=config.val_fraction,
                    groups=config.groups,
                    include=include,
                    train_size=train_size,
                    skip_bad_images=config.skip_bad_images,
                    allow_overlap=allow_overlap,
                    memory_budget_mib=config.memory_budget_mib,
                    cache_dir=self.cache_dir,
                )

            by_split = hashes_of_source(listed)
            return TaskData(
                divided,
                test=by_split.get("test"),
                has_val="val" in by_split,
                source=combined(by_split),
            )

        return _kept(self._tasks, key, load)

    def open_test(self, config: TrainConfig, classes: tuple[str, ...]) -> Split:
        """The decoded test split, for a run that has finished training and selection."""
        prepared = self.facts(config).preprocessing

        def load() -> Split:
            return load_labelled(config.data, prepared, classes=classes, split="test")[0]

        return _kept(self._tests, _data_key(config, prepared), load)


def _listing(spec: str) -> dict[str, str]:
    """The hashes of a source whose files may be gone."""
    try:
        return hashes_of_source(open_source(spec))
    except (DataError, OSError):
        return {}


def _data_key(config: TrainConfig, prepared: Preprocessing) -> tuple[str, ...]:
    asked = (config.val_fraction, config.groups, config.skip_bad_images)
    return config.data, str(prepared), *map(str, asked)


def _kept(cache: OrderedDict[tuple[str, ...], T], key: tuple[str, ...], load: Callable[[], T]) -> T:
    """The value at `key`, loaded if missing; only the latest few are kept."""
    if key not in cache:
        while len(cache) >= KEPT_TASKS:
            cache.popitem(last=False)
        cache[key] = load()
    cache.move_to_end(key)
    return cache[key]
