"""vitune: adapt a pre-trained Vision Transformer to your own images.

Once both are imported, in either order, vitune's methods are registered with PEFT, so
`get_peft_model(model, RLRRConfig())`, `PeftModel.from_pretrained` and PEFT's other functions work
with them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitune.late_imports import after_import

if TYPE_CHECKING:
    from vitune import analysis as analysis
    from vitune.adapters import attach as attach
    from vitune.adapters import load_adapter as load_adapter
    from vitune.adapters import save_adapter as save_adapter
    from vitune.backbones import Backbone as Backbone
    from vitune.backbones import load_backbone as load_backbone
    from vitune.data import load_labelled as load_labelled
    from vitune.data import load_splits as load_splits
    from vitune.errors import VituneError as VituneError
    from vitune.inference import evaluate as evaluate
    from vitune.inference import load_run as load_run
    from vitune.inference import predict as predict
    from vitune.methods import load_plugin as load_plugin
    from vitune.methods import register_method as register_method
    from vitune.methods.adapter_plus import AdapterPlusConfig as AdapterPlusConfig
    from vitune.methods.adaptformer import AdaptFormerConfig as AdaptFormerConfig
    from vitune.methods.apla import APLAConfig as APLAConfig
    from vitune.methods.arc import ARCAttentionConfig as ARCAttentionConfig
    from vitune.methods.arc import ARCConfig as ARCConfig
    from vitune.methods.bitfit import BitFitConfig as BitFitConfig
    from vitune.methods.fact.factorised import FacTTKConfig as FacTTKConfig
    from vitune.methods.fact.factorised import FacTTTConfig as FacTTTConfig
    from vitune.methods.full import FullConfig as FullConfig
    from vitune.methods.houlsby import HoulsbyConfig as HoulsbyConfig
    from vitune.methods.houlsby import PfeifferConfig as PfeifferConfig
    from vitune.methods.hta import HTAConfig as HTAConfig
    from vitune.methods.hta import SequentialHTAConfig as SequentialHTAConfig
    from vitune.methods.knn import NearestNeighboursConfig as NearestNeighboursConfig
    from vitune.methods.layernorm import LayerNormConfig as LayerNormConfig
    from vitune.methods.linear import LinearProbeConfig as LinearProbeConfig
    from vitune.methods.linear_sgd import SteppedProbeConfig as SteppedProbeConfig
    from vitune.methods.lora_mul import LoRAAddConfig as LoRAAddConfig
    from vitune.methods.lora_mul import LoRAMulVPTAddConfig as LoRAMulVPTAddConfig
    from vitune.methods.lora_mul import VPTAddConfig as VPTAddConfig
    from vitune.methods.met import METConfig as METConfig
    from vitune.methods.moppa import MoPPAConfig as MoPPAConfig
    from vitune.methods.moppa_min import MoPPAMinConfig as MoPPAMinConfig
    from vitune.methods.ncm import NearestClassMeanConfig as NearestClassMeanConfig
    from vitune.methods.partial import PartialConfig as PartialConfig
    from vitune.methods.rlrr.config import RLRRConfig as RLRRConfig
    from vitune.methods.ssf import SSFConfig as SSFConfig
    from vitune.methods.vpt import VPTDeepConfig as VPTDeepConfig
    from vitune.methods.vpt import VPTShallowConfig as VPTShallowConfig
    from vitune.training import TrainConfig as TrainConfig
    from vitune.training import fit as fit
    from vitune.training import lean_step as lean_step

__version__ = "0.1.0"

_HOMES = {
    "vitune.adapters": ("attach", "load_adapter", "save_adapter"),
    "vitune.backbones": ("Backbone", "load_backbone"),
    "vitune.data": ("load_labelled", "load_splits"),
    "vitune.errors": ("VituneError",),
    "vitune.inference": ("evaluate", "load_run", "predict"),
    "vitune.methods": ("load_plugin", "register_method"),
    "vitune.training": ("TrainConfig", "fit", "lean_step"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF, "analysis"]


if not TYPE_CHECKING:  # which would let any name pass

    def __getattr__(name: str) -> Any:
        """Load a public name from its room at first use: `import vitune` stays light."""
        if name in _HOME_OF:
            return getattr(importlib.import_module(_HOME_OF[name]), name)
        if name in ("analysis", "methods"):
            return importlib.import_module(f"vitune.{name}")
        if name.endswith("Config"):
            methods = importlib.import_module("vitune.methods")
            for method in methods.OWN.values():
                if method.config_class.__name__ == name:
                    return method.config_class
        raise AttributeError(f"module 'vitune' has no attribute {name!r}")


def __dir__() -> list[str]:
    methods = importlib.import_module("vitune.methods")
    configs = [method.config_class.__name__ for method in methods.OWN.values()]
    return sorted([*globals(), *__all__, *configs])


# Importing PEFT takes seconds, so the methods are registered when PEFT is imported, before or after
# this: `vitune --help` and programs that only read files never pay for it.
after_import("peft", lambda: importlib.import_module("vitune.methods"))
