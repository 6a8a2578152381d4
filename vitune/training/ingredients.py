"""What a run is made of before its adapter: the backbone, the images, the training loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel

from vitune.backbones import Backbone, load_backbone, start_heads
from vitune.counts import count_parameters
from vitune.data import Split, Splits, UsedImages, open_source
from vitune.errors import DataError, VituneError
from vitune.fewer_tokens import few_patches_notice, lost_exits_notice
from vitune.methods import get_method, method_notice
from vitune.runs import RunSummary
from vitune.training.accounting import facts_of
from vitune.training.job import Job
from vitune.training.keeping import backbone_arguments
from vitune.training.memory import require_memory
from vitune.training.placement import main_first
from vitune.training.precision import emulation_notice
from vitune.training.probing import Probe
from vitune.training.scarce import lone_classes, scarcity_notice
from vitune.training.splits_to_train import prepare_data
from vitune.training.train_config import TrainConfig


@dataclass(frozen=True)
class Ingredients:
    """What every run starts with, by steps or solved.

    Args:
        splits: training and perhaps validation images, decoded for `backbone`.
        images: the same by their content, as the run folder records them.
        objective: every argument of the training loss.
        scarcity: what the user should know of classes with a single image; '' for nothing.
    """

    backbone: Backbone
    splits: Splits
    images: UsedImages
    objective: dict[str, Any]
    scarcity: str

    @property
    def train(self) -> Split:
        """The training images."""
        assert self.splits.train is not None
        return self.splits.train


def ingredients_of(job: Job, given: Splits | None) -> Ingredients:
    """All ingredients of a run, checked; the cheapest checks come first.

    Args:
        given: images that the caller has decoded already.

    Raises:
        VituneError: an unusable loss, backbone or set of images.
    """
    objective = job.objective()
    backbone = _backbone(job, given)
    splits = main_first(
        job.process, lambda: _sealed(given) if given is not None else _images(job, backbone)
    )
    assert splits.train is not None
    images = UsedImages.of(splits.train, splits.val)
    job.check_images(images)
    scarcity = "" if given is not None else _scarcity(job.asked)
    return Ingredients(backbone, splits, images, objective, scarcity)


def described(
    job: Job, made: Ingredients, settings: TrainConfig, model: PeftModel,
    accelerator: Accelerator, probe: Probe | None,
) -> RunSummary:  # fmt: skip
    """What is about to be trained; the observer is told."""
    counts = count_parameters(model)
    notices = (
        method_notice(model),
        few_patches_notice(model, settings.token_plan),
        lost_exits_notice(model, settings.token_plan),
        emulation_notice(settings.precision, accelerator.device.type),
    )
    notice = " ".join(part for part in notices if part)
    facts = facts_of(settings, made.backbone, counts, made.splits, accelerator, notice, probe)
    facts = replace(facts, backbone_notice=job.known.notice, scarcity_notice=made.scarcity)
    job.observer.described(facts)
    return facts


def _backbone(job: Job, given: Splits | None) -> Backbone:
    """The backbone with a head for the classes, prepared as the settings say."""
    config = job.asked
    classes = open_source(config.data).classes if given is None else given.classes
    # For whatever the checkpoint lacks (a new head) and the library draws for it.
    torch.manual_seed(config.seed)
    backbone = load_backbone(
        config.backbone,
        num_classes=len(classes),
        drop_path=config.drop_path,
        **backbone_arguments(config),
    )
    preprocessing = config.prepared(backbone.preprocessing)
    if job.record is not None:
        preprocessing = job.record.resolved.preprocessing
    backbone = replace(backbone, preprocessing=preprocessing)
    if config.head_init != "zero":
        start_heads(backbone.model, config.head_init)
    if config.checkpointing:
        _checkpoint_activations(backbone)
    if not get_method(config.method).solved:
        require_memory(backbone, config, job.process.device)
    return backbone


def _images(job: Job, backbone: Backbone) -> Splits:
    """Training and validation images, decoded for the backbone."""
    return prepare_data(job.asked, backbone, job.observer, job.augment(backbone))


def _sealed(splits: Splits) -> Splits:
    """The splits, among which there must be training images and no test split."""
    if splits.test is not None or splits.train is None:
        raise DataError(
            "splits: got a test split or no training split, expected train and perhaps val: a test "
            "split is opened after training."
        )
    return splits


def _scarcity(config: TrainConfig) -> str:
    is_solved = get_method(config.method).solved
    return scarcity_notice(lone_classes(config), solved=is_solved)


def _checkpoint_activations(backbone: Backbone) -> None:
    """Recompute activations in the backward pass, where the backbone's library offers it."""
    for name, arguments in (
        ("set_grad_checkpointing", (True,)),
        ("gradient_checkpointing_enable", ()),
    ):
        if hasattr(backbone.model, name):
            getattr(backbone.model, name)(*arguments)
            return
    raise VituneError(
        f"--checkpointing: got backbone {backbone.name!r}, expected one that can recompute its "
        "activations (timm and transformers models can)."
    )
