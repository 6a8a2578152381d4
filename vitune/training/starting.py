"""Where training starts: at the solved probe, which is kept in the run folder beside the result."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import torch
from peft import PeftModel

from vitune.adapters import attach, card_of, load_adapter, save_adapter
from vitune.backbones import Backbone, load_backbone, start_heads
from vitune.data import Splits
from vitune.errors import BackboneError, VituneError
from vitune.methods import get_method
from vitune.runs import RunFolder
from vitune.training.checkpoint import has_checkpoint
from vitune.training.config import TrainConfig
from vitune.training.observer import Observer
from vitune.training.probing import Probe, solve_probe

METHOD = "linear"
RECORD = "probe.json"


def starts_at_probe(config: TrainConfig) -> bool:
    """Whether the classifier starts at the solved probe.

    Raises:
        VituneError: a probe and a drawn head are both asked for.
    """
    if config.start == "probe" and config.head_init != "zero":
        raise VituneError(
            f"--start: got 'probe' with --head-init {config.head_init}, expected one of the two."
        )
    if config.start is not None:
        return config.start == "probe"
    return config.head_init == "zero" and get_method(config.method).starts_at_probe


def starting_probe(
    config: TrainConfig,
    folder: RunFolder | None,
    backbone: Backbone,
    splits: Splits,
    device: torch.device,
    observer: Observer,
    *,
    is_main: bool,
    given: Probe | None = None,
) -> Probe | None:
    """The solved probe that the run starts from and is compared with; None where it does neither.

    A resumed run reads what its first part wrote down. `backbone` comes back with a zero head.

    Args:
        given: solved already on the same images.

    Raises:
        BackboneError: a probe was asked for by name and the network has no head to solve.
    """
    if not starts_at_probe(config):
        return None
    if folder is not None and has_checkpoint(folder.checkpoint):
        known = _read(folder)
        if known is not None:
            return known
    try:
        probe = given or solve_probe(
            backbone,
            splits,
            method=METHOD,
            device=device,
            seed=config.seed,
            budget_mib=config.memory_budget_mib,
            on_progress=observer.prepared,
        )
    except BackboneError:
        if config.start == "probe":
            raise
        return None
    if folder is not None and is_main:
        _keep(probe, config, folder, backbone, splits.classes)
    return probe


def _keep(
    probe: Probe, config: TrainConfig, folder: RunFolder, backbone: Backbone,
    classes: tuple[str, ...],
) -> None:  # fmt: skip
    """Write RUN/probe: an adapter like any other, so that it can be evaluated and merged."""
    model = attach(backbone, METHOD)
    probe.head.place(model)
    given = {"image_size": config.image_size, "checkpoint": config.checkpoint}
    card = card_of(
        model,
        backbone,
        method=METHOD,
        method_args={},
        backbone_args={key: value for key, value in given.items() if value is not None},
        classes=classes,
        temperature=probe.temperature,
    )
    save_adapter(model, folder.probe, card)
    model.unload()
    start_heads(backbone.model, "zero")
    record = {**probe.facts(), "train_loss": probe.train_loss, "right": probe.right.tolist(),
              "losses": probe.losses.tolist()}  # fmt: skip
    (folder.probe / RECORD).write_text(json.dumps(record) + "\n")


def _read(folder: RunFolder) -> Probe | None:
    """The probe of a run that is continued, without its head: that is in the checkpoint."""
    path = folder.probe / RECORD
    if not path.is_file():
        return None
    known = json.loads(path.read_text())
    nothing = Probe.of_nothing()
    return replace(
        nothing,
        head=replace(nothing.head, chosen=known["chosen"], how=known["how"]),
        copies=known["copies"],
        train_loss=known["train_loss"],
        val_loss=known["val_loss"],
        val_accuracy=known["val_accuracy"],
        right=np.array(known["right"], bool),
        losses=np.array(known["losses"], float),
        temperature=known["temperature"],
        seconds=known["seconds"],
    )


def probe_alone(
    config: TrainConfig, folder: RunFolder | None, probe: Probe, num_classes: int
) -> PeftModel:
    """The solved probe as a model of its own, on a backbone that is loaded again."""
    given = {"image_size": config.image_size, "checkpoint": config.checkpoint}
    fresh = load_backbone(config.backbone, num_classes=num_classes, **given)  # type: ignore[arg-type]
    if not len(probe.head.bias):
        assert folder is not None
        return load_adapter(fresh.model, folder.probe, trainable=True)
    model = attach(fresh, METHOD)
    probe.head.place(model)
    return model
