"""The training and validation images of a run."""

from __future__ import annotations

from dataclasses import replace

from vitune.backbones import Backbone
from vitune.data import Augment, Splits, augmentation, load_splits
from vitune.training.observer import Observer
from vitune.training.scarce import lone_classes
from vitune.training.train_config import TrainConfig


def prepare_data(
    config: TrainConfig, backbone: Backbone, observer: Observer, augment: Augment | None = None
) -> Splits:
    """Training and validation images of `config.data`, decoded for `backbone`.

    Args:
        augment: the augmentation; None is the one that `config` names.

    Raises:
        DataError: what `load_splits` refuses.
    """
    size = backbone.preprocessing.image_size
    lone = lone_classes(config)
    splits = load_splits(
        config.data,
        backbone.preprocessing,
        seed=config.seed,
        val_fraction=0 if lone.are_all else config.val_fraction,
        lone_classes=bool(lone.names),
        skip_bad_images=config.skip_bad_images,
        groups=config.groups,
        memory_budget_mib=config.memory_budget_mib,
        include=("trainval",) if config.refit else ("train", "val"),
        train_size=(augment or augmentation(config.augment, size)).train_size(size),
        on_progress=lambda done, total: observer.prepared("images", done, total),
    )
    return replace(splits, train=splits.trainval if config.refit else splits.train)
