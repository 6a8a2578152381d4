"""Whether mirrored and shifted images keep their labels, judged by a task's solved probe."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vitune.backbones import Backbone
from vitune.data import Augment, Split, augmentation
from vitune.training.feature_reader import FeatureReader, View
from vitune.training.probing import Probe
from vitune.training.train_config import TrainConfig

AUTO, NOTHING = "auto", "none"

TRIED = ("crop_flip", "flip")
"""Presets in order of preference."""

SHARE_KEPT = 0.9
"""The share of its knowledge of plain images that the probe must keep on changed ones."""


def with_augmentation(
    config: TrainConfig, backbone: Backbone, val: Split | None, probe: Probe | None, device: str
) -> TrainConfig:
    """The settings with "auto" augmentation resolved.

    It is one of TRIED if training starts at the probe and the probe still recognises validation
    images changed in that way; else none.
    """
    if config.augment != AUTO:
        return config
    chosen = NOTHING
    if config.start == "probe" and probe is not None and len(probe.losses):
        assert val is not None
        with FeatureReader(backbone.model, backbone.preprocessing, device) as read:
            for name in TRIED:
                view = _changed(augmentation(name, backbone.preprocessing.image_size), config.seed)
                if _is_harmless(probe, read(val, views=(view,)), val):
                    chosen = name
                    break
    return config.model_copy(update={"augment": chosen})


def _changed(augment: Augment, seed: int) -> View:
    """A view of images in which each is mirrored, and shifted if the preset shifts."""
    always = Augment(flip_rate=1.0, padding_pixels=augment.padding_pixels)
    generator = torch.Generator().manual_seed(seed)
    return lambda images: always(images, generator)


def _is_harmless(probe: Probe, features: Tensor, val: Split) -> bool:
    """Whether the probe knows the labels of changed images nearly as well.

    Its knowledge is log(classes) minus its cross-entropy. Mirroring digits destroys nearly all of
    it, mirroring photographs nearly nothing.
    """
    labels = torch.as_tensor(val.labels)
    logits = probe.head.logits(features) / probe.temperature
    chance = math.log(probe.head.bias.numel())
    known = chance - float(probe.losses.mean())
    still_known = chance - F.cross_entropy(logits, labels).item()
    return known > 0 and still_known >= SHARE_KEPT * known
