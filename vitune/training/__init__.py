"""Training: `fit`, its settings and the loop. Nothing here can open a test split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitune.late_imports import late_names
from vitune.training.observer import Observer, Running
from vitune.training.speed_presets import FASTER, PRESETS
from vitune.training.train_config import STEPPING, TrainConfig, read_yaml, settings_in

if TYPE_CHECKING:
    from vitune.training.attempt_log import AttemptLog
    from vitune.training.fitting import fit
    from vitune.training.keeping import Trained, backbone_arguments
    from vitune.training.last_block import class_tail, lean_training
    from vitune.training.lean_anywhere import LeanStep, lean_step
    from vitune.training.optimiser import new_optimiser
    from vitune.training.precision import NUMBER_FORMATS, emulation_notice
    from vitune.training.resume_point import read_progress
    from vitune.training.settling import with_fitting_batch
    from vitune.training.tuning import Tuning
    from vitune.training.validating import inference_weights

__all__ = [
    "FASTER",
    "NUMBER_FORMATS",
    "PRESETS",
    "STEPPING",
    "AttemptLog",
    "LeanStep",
    "Observer",
    "Running",
    "TrainConfig",
    "Trained",
    "Tuning",
    "backbone_arguments",
    "class_tail",
    "emulation_notice",
    "fit",
    "inference_weights",
    "lean_step",
    "lean_training",
    "new_optimiser",
    "read_progress",
    "read_yaml",
    "settings_in",
    "with_fitting_batch",
]

_NEEDING_PYTORCH = {
    "attempt_log": ("AttemptLog",),
    "fitting": ("fit",),
    "keeping": ("Trained", "backbone_arguments"),
    "last_block": ("class_tail", "lean_training"),
    "lean_anywhere": ("LeanStep", "lean_step"),
    "optimiser": ("new_optimiser",),
    "precision": ("NUMBER_FORMATS", "emulation_notice"),
    "resume_point": ("read_progress",),
    "settling": ("with_fitting_batch",),
    "tuning": ("Tuning",),
    "validating": ("inference_weights",),
}
"""Imported when first asked for: the settings alone, for --help, do not need PyTorch."""

if not TYPE_CHECKING:  # which would let any name pass
    __getattr__ = late_names(__name__, _NEEDING_PYTORCH)
