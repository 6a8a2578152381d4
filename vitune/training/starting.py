"""Where training starts: at the solved probe, which is kept in the run folder with the result."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vitune.adapters import attach, save_adapter
from vitune.backbones import Backbone, start_heads
from vitune.data import Splits
from vitune.errors import AdapterError, BackboneError, VituneError, one_line
from vitune.files import atomic_folder
from vitune.methods import CAUTIOUS, PROBE, get_method
from vitune.result_files import Record, as_record, read_json
from vitune.runs import RunFolder, SolvedFacts
from vitune.training.keeping import card_for
from vitune.training.observer import Observer
from vitune.training.probing import Probe, solve_probe
from vitune.training.rates import (
    HEAD_FACTOR,
    falls_short,
    has_few_steps,
    rate_by_rule,
    rate_from_zero,
)
from vitune.training.train_config import TrainConfig

RECORD = "probe.json"


def starts_at_probe(config: TrainConfig) -> bool:
    """Whether the classifier starts at the solved probe.

    Raises:
        VituneError: both a probe and a random head are requested.
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
    backbone: Backbone,
    splits: Splits,
    device: torch.device,
    observer: Observer,
    *,
    given: Probe | None = None,
) -> Probe | None:
    """The solved probe that the run starts from and is compared with; None if it does neither.

    Args:
        given: a probe already solved on the same images.

    Raises:
        BackboneError: a probe was requested explicitly and the network has no head to solve.
    """
    if not starts_at_probe(config):
        return None
    try:
        return given or solve_probe(
            backbone,
            splits,
            method=PROBE,
            device=device,
            seed=config.seed,
            budget_mib=config.memory_budget_mib,
            on_progress=observer.prepared,
        )
    except BackboneError:
        if config.start == "probe":
            raise
        return None


def with_start(
    config: TrainConfig,
    model: nn.Module,
    num_images: int,
    num_processes: int,
    probe: Probe | None,
    *,
    longest: int | None = None,
) -> TrainConfig:
    """The settings with the start and the matching learning rates filled in.

    Training starts at the probe if the features suit the task, or if no rate was given and the
    steps are so few that from zero it seldom gets beyond the probe. Rates are as given, else by
    rule from the probe, else the method's own.

    Args:
        longest: epochs of the run that this one is a trial for; None: it stands for itself.
    """
    whole = config.model_copy(update={"epochs": longest or config.epochs})
    from_probe = probe is not None and (
        config.start == "probe"
        or (config.lr is None and has_few_steps(whole, num_images, num_processes))
        or not falls_short(probe.head.chosen.get(CAUTIOUS), num_images)
    )
    lr, head_lr = config.lr, config.head_lr
    if lr is None and from_probe and probe is not None:
        lr = rate_by_rule(config, model, num_images, num_processes, probe)
    elif lr is None and config.start is None:
        lr = rate_from_zero(config, model, num_images, num_processes, probe)
    elif lr is None:
        lr = get_method(config.method).default_lr(config.backbone)
    if head_lr is None and from_probe:
        head_lr = lr * HEAD_FACTOR
    start = "probe" if from_probe else "plain"
    choose_best = config.choose_best
    if choose_best is None:  # an explicit rate or start means that the user has a plan
        is_left_to_rules = config.start is None and config.lr is None
        choose_best = is_left_to_rules and probe is not None and not config.refit
    return config.model_copy(
        update={"start": start, "lr": lr, "head_lr": head_lr, "choose_best": choose_best}
    )


def staged_probe(
    probe: Probe, config: TrainConfig, folder: Path, backbone: Backbone, classes: tuple[str, ...]
) -> None:
    """Write the probe to `folder` as an adapter like any other, so that it can be evaluated and
    merged.

    `backbone` is left with a zero head.
    """
    model = attach(backbone, PROBE)
    probe.head.place(model)
    settings = config.model_copy(update={"method": PROBE, "method_args": {}, "start": None})
    card = card_for(model, backbone, settings, classes, probe.sound_temperature)
    save_adapter(model, folder, card)
    model.unload()
    start_heads(backbone.model, "zero")
    judged = {
        name: getattr(probe, name).tolist()
        for name in ("right", "losses", "pulls", "groups")
        if getattr(probe, name) is not None
    }
    record = {**asdict(probe.facts()), "train_loss": probe.train_loss, **judged}
    (folder / RECORD).write_text(json.dumps(record) + "\n")


def keep_probe(staged: Path, folder: RunFolder) -> None:
    """Move what `staged_probe` wrote into the run atomically."""
    with atomic_folder(folder.probe) as aside:
        shutil.copytree(staged, aside, dirs_exist_ok=True)


def kept_probe(folder: RunFolder, *, is_needed: bool = False) -> Probe | None:
    """The probe of a resumed run, without its head, which is in the checkpoint.

    Raises:
        AdapterError: its file is damaged, or missing where it is needed.
    """
    path = folder.probe / RECORD
    if not path.is_file():
        if is_needed:
            raise AdapterError(
                f"--resume: got {str(folder.path)!r} without {folder.probe.name}/{RECORD}, "
                "expected the solved probe that the run is compared with. Put the folder back, or "
                "start a new run."
            )
        return None
    try:
        record = as_record(read_json(path, RECORD), RECORD)
        return _probe_in(replace(record, is_exact=True, remedy=""))
    except (OSError, ValueError, TypeError) as error:
        raise AdapterError(
            f"{path}: got a damaged file ({one_line(error).removesuffix('.')}), expected what "
            "training wrote. Put a whole copy in its place, or start a new run."
        ) from None


def _probe_in(record: Record) -> Probe:
    """The probe that probe.json describes; its head is empty."""
    facts, nothing = SolvedFacts.of(record), Probe.of_nothing()
    since_lately = replace(record, is_exact=False)  # absent in runs of earlier releases
    groups = since_lately.listing("groups")
    record.needed("train_loss")
    return replace(
        nothing,
        head=replace(nothing.head, chosen=facts.chosen, how=facts.how),
        copies=facts.copies,
        train_loss=record.number("train_loss") or 0.0,
        val_loss=facts.val_loss,
        val_accuracy=facts.val_accuracy,
        right=np.array(record.listing("right"), bool),
        losses=np.array(record.listing("losses"), float),
        pulls=np.array(since_lately.listing("pulls"), float),
        groups=np.array(groups, np.int64) if groups else None,
        lookalikes=facts.lookalikes,
        temperature=facts.temperature,
        mirror_gain=facts.mirror_gain,
        seconds=facts.seconds or 0.0,
    )
