"""Whether mirrored and shifted images keep their labels, judged by a task's solved probe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitune.backbones import Backbone
from vitune.data import Augment, Split, Splits, augmentation
from vitune.methods import PROBE, HeadProblem, Labelled, SolvedConfig, get_method
from vitune.ops import calibrated_losses
from vitune.training.feature_reader import FeatureReader, View
from vitune.training.probing import COPIES, Probe
from vitune.training.train_config import TrainConfig

AUTO, NOTHING = "auto", "none"

TRIED = ("crop_flip", "flip")
"""Presets in order of preference for a start at the probe."""

SHARE_KEPT = 0.9
"""The share of its knowledge of plain images that the probe must keep on changed ones."""

TRIED_FROM_ZERO = "shift"
"""The preset for a start from zero."""

SHARE_RELEARNT = 0.75
"""The share of the probe's knowledge that a probe of shifted images must reach."""

HARDER = 2
"""It is tested with shifts so many times as long, so that what passes has some margin."""


def with_augmentation(
    config: TrainConfig, backbone: Backbone, splits: Splits, probe: Probe | None, device: str
) -> TrainConfig:
    """The settings with "auto" augmentation resolved; without validation images it is none.

    A start at the probe takes the first of TRIED under which the probe still recognises validation
    images: it is to stay near what the probe knows. A start from zero learns anew, on features that
    fall short. There a probe that is solved on shifted training images has to know nearly as much
    of shifted validation images: what it cannot know is what shifting takes away, as where the
    label is a place.
    """
    if config.augment != AUTO:
        return config
    chosen = NOTHING
    if probe is not None and len(probe.losses):
        with FeatureReader(
            backbone.model, backbone.preprocessing, device, config.memory_budget_mib
        ) as read:
            judge = Judge(probe, splits, read, config.seed)
            if config.start == "probe":
                kept = (name for name in TRIED if judge.share_kept(name) >= SHARE_KEPT)
                chosen = next(kept, NOTHING)
            elif judge.share_relearnt(TRIED_FROM_ZERO) >= SHARE_RELEARNT:
                chosen = TRIED_FROM_ZERO
    return config.model_copy(update={"augment": chosen})


class Judge:
    """What a probe knows of changed validation images, as a share of what it knows of plain ones.

    Knowledge is log(classes) minus cross-entropy; without any, every share is 0. Mirroring digits
    destroys nearly all of a probe's knowledge, mirroring photographs nearly nothing.

    Args:
        splits: with validation images, on which `probe` was scored.
    """

    def __init__(self, probe: Probe, splits: Splits, read: FeatureReader, seed: int) -> None:
        assert splits.train is not None and splits.val is not None
        self.probe, self.read, self.seed = probe, read, seed
        self.train, self.val = splits.train, splits.val
        self.labels = torch.as_tensor(self.val.labels)

    def share_kept(self, name: str) -> float:
        """Of the probe itself, all images mirrored, and shifted if the preset shifts."""
        change = replace(self._preset(name), flip_rate=1.0)
        logits = self.probe.head.logits(self._features(self.val, change))
        return self._share(F.cross_entropy(logits / self.probe.temperature, self.labels))

    def share_relearnt(self, name: str) -> float:
        """Of a probe solved on images that are shifted at random, and further, like those.

        If mirrored copies helped the probe that it is compared with, it has them too.
        """
        preset = self._preset(name)
        change = replace(preset, padding_pixels=HARDER * preset.padding_pixels)
        copies = COPIES[self.probe.copies]
        labels = np.tile(np.asarray(self.train.labels), len(copies))
        train = Labelled(self._features(self.train, change, copies), labels)
        penalty = {"penalty": self.probe.head.chosen["penalty"]}
        config = get_method(PROBE).configure(self.read.model, penalty)
        assert isinstance(config, SolvedConfig)
        device, num_classes = str(self.read.device), len(self.train.classes)
        head = config.solve(HeadProblem(train, None, num_classes, None, self.seed, device))
        logits = head.logits(self._features(self.val, change))
        return self._share(calibrated_losses(logits, self.labels).mean())

    def _preset(self, name: str) -> Augment:
        return augmentation(name, self.read.preprocessing.image_size)

    def _features(
        self, split: Split, change: Augment, copies: Sequence[View | None] = (None,)
    ) -> Any:
        """Of changed images, one copy after the other; every copy is changed anew."""
        generator = torch.Generator().manual_seed(self.seed)

        def changed(copy: View | None) -> View:
            return lambda images: change(images if copy is None else copy(images), generator)

        return self.read(split, views=tuple(map(changed, copies)))

    def _share(self, loss: Tensor) -> float:
        chance = math.log(self.probe.head.bias.numel())
        known = chance - float(self.probe.losses.mean())
        return (chance - loss.item()) / known if known > 0 else 0.0
