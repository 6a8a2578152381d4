"""Whether mirrored and shifted images keep their labels, judged by a task's solved probe."""

from __future__ import annotations

import math
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
from vitune.training.feature_reader import FeatureReader
from vitune.training.probing import Probe
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
            judge = _Judge(probe, splits, read, backbone, config.seed)
            if config.start == "probe":
                chosen = next((name for name in TRIED if judge.still_knows(name)), NOTHING)
            elif judge.relearns(TRIED_FROM_ZERO):
                chosen = TRIED_FROM_ZERO
    return config.model_copy(update={"augment": chosen})


class _Judge:
    """What a probe knows of changed validation images.

    Knowledge is log(classes) minus cross-entropy. Mirroring digits destroys nearly all of a
    probe's knowledge, mirroring photographs nearly nothing.
    """

    def __init__(
        self, probe: Probe, splits: Splits, read: FeatureReader, backbone: Backbone, seed: int
    ) -> None:
        assert splits.train is not None and splits.val is not None
        self.probe, self.read, self.backbone, self.seed = probe, read, backbone, seed
        self.train, self.val = splits.train, splits.val
        self.chance = math.log(probe.head.bias.numel())
        self.known = self.chance - float(probe.losses.mean())

    def still_knows(self, name: str) -> bool:
        """Whether the probe itself knows nearly as much of images that are all mirrored, and
        shifted if the preset shifts."""
        preset = self._preset(name)
        logits = self.probe.head.logits(self._features(self.val, replace(preset, flip_rate=1.0)))
        labels = torch.as_tensor(self.val.labels)
        losses = F.cross_entropy(logits / self.probe.temperature, labels)
        return self._suffices(losses, SHARE_KEPT)

    def relearns(self, name: str) -> bool:
        """Whether a probe of images shifted at random, and further, knows nearly as much."""
        preset = self._preset(name)
        preset = replace(preset, padding_pixels=HARDER * preset.padding_pixels)
        train = Labelled(self._features(self.train, preset), np.asarray(self.train.labels))
        penalty = {"penalty": self.probe.head.chosen["penalty"]}
        config = get_method(PROBE).configure(self.backbone.model, penalty)
        assert isinstance(config, SolvedConfig)
        problem = HeadProblem(
            train, None, len(self.train.classes), None, self.seed, str(self.read.device)
        )
        logits = config.solve(problem).logits(self._features(self.val, preset))
        return self._suffices(
            calibrated_losses(logits, torch.as_tensor(self.val.labels)).mean(), SHARE_RELEARNT
        )

    def _preset(self, name: str) -> Augment:
        return augmentation(name, self.backbone.preprocessing.image_size)

    def _features(self, split: Split, change: Augment) -> Any:
        generator = torch.Generator().manual_seed(self.seed)

        def changed(images: Tensor) -> Tensor:
            return change(images, generator)

        return self.read(split, views=(changed,))

    def _suffices(self, loss: Tensor, share: float) -> bool:
        return self.known > 0 and self.chance - loss.item() >= share * self.known
