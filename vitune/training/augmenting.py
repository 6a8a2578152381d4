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
from vitune.methods import (
    PROBE,
    HeadProblem,
    Labelled,
    SolvedConfig,
    SolvedHead,
    folds,
    get_method,
)
from vitune.ops import calibrated_losses, paired
from vitune.training.feature_reader import FeatureReader, View
from vitune.training.probing import COPIES, Probe, groups_of, pictures_of
from vitune.training.train_config import TrainConfig

AUTO, NOTHING = "auto", "none"

TRIED = ("crop_flip", "flip")
"""Presets in order of preference for a start at the probe."""

SHARE_KEPT = 0.9
"""The share of its knowledge of plain images that the probe must keep on changed ones."""

TRIED_FROM_ZERO = "shift"
"""The preset for a start from zero."""

SHARE_RELEARNT = 0.8
"""The share of the probe's knowledge that a probe of shifted images must reach."""

HARDER = 2
"""It is tested with shifts so many times as long, so that what passes has some margin."""

NUM_SHIFTED = 3
"""Shifted copies of each image that a probe is given, to see whether they make it better."""

CLEARLY = 2.0
"""Standard errors by which it must be better if it does not reach SHARE_RELEARNT."""

MOST_JUDGED = 4000
"""Images of a larger data set on which that is tried."""


def with_augmentation(
    config: TrainConfig, backbone: Backbone, splits: Splits, probe: Probe | None, device: str
) -> TrainConfig:
    """The settings with "auto" augmentation resolved; without validation images it is none.

    A start at the probe takes the first of TRIED under which the probe still recognises validation
    images: it is to stay near what the probe knows. A start from zero learns anew, on features that
    fall short. There a probe that is solved on shifted training images has to know nearly as much
    of shifted validation images: what it cannot know is what shifting takes away, as where the
    label is a place. If it knows less, shifts must at least make a probe of plain images better.
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
            elif judge.may_change(TRIED_FROM_ZERO):
                chosen = TRIED_FROM_ZERO
    return config.model_copy(update={"augment": chosen})


class Judge:
    """What a probe knows of changed images, and learns from them, compared with plain ones.

    Knowledge is log(classes) minus cross-entropy; without any, every share is 0. Mirroring digits
    destroys nearly all of a probe's knowledge, mirroring photographs nearly nothing.

    Args:
        splits: with validation images, on which `probe` was scored.
    """

    def __init__(self, probe: Probe, splits: Splits, read: FeatureReader, seed: int) -> None:
        assert splits.train is not None and splits.val is not None
        self.probe, self.read, self.seed = probe, read, seed
        self.train, self.val = splits.train, splits.val

    def may_change(self, name: str) -> bool:
        """Whether training that starts from zero may change images like that."""
        if self.share_relearnt(name) >= SHARE_RELEARNT:
            return True
        gain, error = self.gain_of_copies(name)
        return gain > CLEARLY * error

    def share_kept(self, name: str) -> float:
        """Of the probe itself, all images mirrored, and shifted if the preset shifts."""
        change = replace(self._preset(name), flip_rate=1.0)
        logits = self.probe.head.logits(self.read(self.val, views=self._changed(change)))
        labels = torch.as_tensor(self.val.labels)
        return self._share(F.cross_entropy(logits / self.probe.temperature, labels))

    def share_relearnt(self, name: str) -> float:
        """Of a probe solved on images that are shifted at random, and further, like those."""
        preset = self._preset(name)
        change = replace(preset, padding_pixels=HARDER * preset.padding_pixels)
        train, val = (
            self.read(part, views=self._changed(change)) for part in (self.train, self.val)
        )
        head = self._solved(train, np.asarray(self.train.labels))
        return self._share(
            calibrated_losses(head.logits(val), torch.as_tensor(self.val.labels)).mean()
        )

    def gain_of_copies(self, name: str) -> tuple[float, float]:
        """By how much plain images' cross-entropy falls if the probe has changed copies as well.

        Cross-validated over training and validation images together: a few hundred validation
        images would not tell.

        Returns:
            Mean and standard error, in nats; not a number if nothing can be cross-validated.
        """
        parts = self._parts()
        own = COPIES[self.probe.copies]
        views = (*own, *self._changed(self._preset(name), own * NUM_SHIFTED))
        features = np.concatenate(
            [self.read(part, views=views).reshape(len(views), len(part), -1) for part in parts], 1
        )  # (v, n, d)
        labels = np.concatenate([part.labels for part in parts])
        pictures = pictures_of(parts)
        of_each = [found for found in groups_of(parts, pictures) if found is not None]
        groups = np.concatenate(of_each) if of_each else None
        plain = Labelled(features[0], labels, groups)
        pairs = folds(HeadProblem(plain, None, len(self.train.classes), pictures, self.seed))
        if not pairs:
            return math.nan, math.nan
        judged = plain.at(np.concatenate([judge for _, judge in pairs]))
        without, having = (
            torch.cat([
                self._solved(features[:num, fit], labels[fit]).logits(features[0, judge])
                for fit, judge in pairs
            ])
            for num in (len(own), len(views))
        )  # fmt: skip
        told = torch.as_tensor(judged.labels)
        return paired(
            calibrated_losses(without, told), calibrated_losses(having, told), judged.groups
        )

    def _parts(self) -> list[Split]:
        """Training and validation images, a sample of them if they are many."""
        num_train, total = len(self.train), len(self.train) + len(self.val)
        if total <= MOST_JUDGED:
            return [self.train, self.val]
        drawn = np.sort(np.random.default_rng(self.seed).permutation(total)[:MOST_JUDGED])
        is_train = drawn < num_train
        return [self.train.subset(drawn[is_train]), self.val.subset(drawn[~is_train] - num_train)]

    def _solved(self, features: Any, labels: np.ndarray) -> SolvedHead:
        """A head on views of images, with a penalty as strong as the probe's on all images.

        Shapes: features (v · n, d) or (v, n, d); labels (n,).
        """
        rows = features.reshape(-1, features.shape[-1])
        penalty = self.probe.head.chosen["penalty"] * len(self.train) / len(labels)
        config = get_method(PROBE).configure(self.read.model, {"penalty": penalty})
        assert isinstance(config, SolvedConfig)
        known = Labelled(rows, np.tile(labels, len(rows) // len(labels)))
        device, num_classes = str(self.read.device), len(self.train.classes)
        return config.solve(HeadProblem(known, None, num_classes, None, self.seed, device))

    def _preset(self, name: str) -> Augment:
        return augmentation(name, self.read.preprocessing.image_size)

    def _changed(
        self, change: Augment, copies: tuple[View | None, ...] = (None,)
    ) -> tuple[View, ...]:
        """Views that change images, and these copies of them; each is changed anew."""
        generator = torch.Generator().manual_seed(self.seed)

        def changed(copy: View | None) -> View:
            return lambda images: change(images if copy is None else copy(images), generator)

        return tuple(map(changed, copies))

    def _share(self, loss: Tensor) -> float:
        chance = math.log(self.probe.head.bias.numel())
        known = chance - float(self.probe.losses.mean())
        return (chance - loss.item()) / known if known > 0 else 0.0
