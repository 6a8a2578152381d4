"""`--choose-best`: the solved probe takes the place of an adapted network that is no better."""

from __future__ import annotations

import shutil
from dataclasses import replace

from accelerate import Accelerator
from peft import PeftModel

from vitune.adapters import attach, load_adapter
from vitune.backbones import load_backbone
from vitune.counts import count_parameters, trained_parts
from vitune.data import Split
from vitune.files import atomic_folder
from vitune.methods import PROBE
from vitune.runs import Reported, RunFolder
from vitune.training.accounting import with_method
from vitune.training.keeping import Trained, backbone_arguments, write_result
from vitune.training.probing import Probe
from vitune.training.train_config import TrainConfig
from vitune.training.validating import scores_on
from vitune.training.verdict import calibration


def probe_instead(
    trained: Trained,
    settings: TrainConfig,
    probe: Probe,
    val: Split | None,
    folder: RunFolder | None,
    accelerator: Accelerator,
) -> Trained:
    """The probe as the run's result; the adapted network moves to RUN/adapted.

    Args:
        val: the validation images, on which the probe's confidence is judged.
    """
    alone = _probe_alone(settings, folder, probe, len(trained.classes))
    model = alone.to(accelerator.device)
    seen = None
    if val is not None:
        seen = scores_on(val, model, trained.backbone.preprocessing, accelerator, ()).seen
    summary = replace(
        with_method(trained.summary, PROBE, count_parameters(model)),
        chosen="probe",
        asked=settings.method,
        trained_parts=trained_parts(model),
        reported=Reported("probe", 0, probe.val_accuracy),
        calibration=calibration(seen, probe=probe),
    )
    chosen = replace(trained, model=model, summary=summary, seen=seen)
    if folder is not None and accelerator.is_main_process:
        folder.summary.unlink()
        with atomic_folder(folder.path / "adapted") as aside:
            shutil.copytree(folder.adapter, aside, dirs_exist_ok=True)
        update = {"method": PROBE, "method_args": {}, "tokens": "keep"}
        chosen = write_result(chosen, folder, settings.model_copy(update=update))
    return chosen


def _probe_alone(
    config: TrainConfig, folder: RunFolder | None, probe: Probe, num_classes: int
) -> PeftModel:
    """The solved probe as a model of its own, on a backbone that is loaded again."""
    fresh = load_backbone(config.backbone, num_classes=num_classes, **backbone_arguments(config))
    if not len(probe.head.bias):
        assert folder is not None
        return load_adapter(fresh.model, folder.probe, trainable=True)
    model = attach(fresh, PROBE)
    probe.head.place(model)
    return model
