"""All methods: one file per method, one line here. Importing this registers them with PEFT."""

from __future__ import annotations

from vitune.errors import VituneError, nearest
from vitune.methods.adapter_plus import AdapterPlusConfig
from vitune.methods.adaptformer import AdaptFormerConfig
from vitune.methods.apla import APLAConfig
from vitune.methods.arc import ARCAttentionConfig, ARCConfig
from vitune.methods.bitfit import BitFitConfig
from vitune.methods.core.adapter_tensors import current_names as current_names
from vitune.methods.core.combination import AdapterState as AdapterState
from vitune.methods.core.combination import combined_state as combined_state
from vitune.methods.core.coverage import method_notice as method_notice
from vitune.methods.core.delta_noise import method_penalty as method_penalty
from vitune.methods.core.delta_noise import noise_plan as noise_plan
from vitune.methods.core.layer import MethodLayer as MethodLayer
from vitune.methods.core.method_config import MethodConfig as MethodConfig
from vitune.methods.core.peft_options import catch_up
from vitune.methods.core.peft_options import method_name as method_name
from vitune.methods.core.peft_targets import UNSUPPORTED
from vitune.methods.core.plugins import load_entry_points
from vitune.methods.core.plugins import load_plugin as load_plugin
from vitune.methods.core.plugins import register_method as register_method
from vitune.methods.core.plugins import require_plugin as require_plugin
from vitune.methods.core.registry import METHODS, own_method
from vitune.methods.core.registry import OUTSIDE as OUTSIDE
from vitune.methods.core.registry import Method as Method
from vitune.methods.core.registry import keeps_tokens_apart as keeps_tokens_apart
from vitune.methods.core.solved import CAUTIOUS as CAUTIOUS
from vitune.methods.core.solved import SAMPLE_RATIO as SAMPLE_RATIO
from vitune.methods.core.solved import HeadProblem as HeadProblem
from vitune.methods.core.solved import Labelled as Labelled
from vitune.methods.core.solved import SolvedConfig as SolvedConfig
from vitune.methods.core.solved import SolvedHead as SolvedHead
from vitune.methods.core.solved import folds as folds
from vitune.methods.core.solved import trained_classifier as trained_classifier
from vitune.methods.fact.factorised import FacTTKConfig, FacTTTConfig
from vitune.methods.fact.official_layout import load_official as load_official_fact  # noqa: F401
from vitune.methods.full import FullConfig
from vitune.methods.houlsby import HoulsbyConfig, PfeifferConfig
from vitune.methods.hta import HTAConfig, SequentialHTAConfig
from vitune.methods.knn import NearestNeighboursConfig
from vitune.methods.layernorm import LayerNormConfig
from vitune.methods.linear import LinearProbeConfig
from vitune.methods.linear_sgd import SteppedProbeConfig
from vitune.methods.lora_mul import LoRAAddConfig, LoRAMulVPTAddConfig, VPTAddConfig
from vitune.methods.met import METConfig
from vitune.methods.moppa import MoPPAConfig
from vitune.methods.moppa_min import MoPPAMinConfig
from vitune.methods.ncm import NearestClassMeanConfig
from vitune.methods.partial import PartialConfig
from vitune.methods.rlrr.arithmetic import combine_states as combine_states
from vitune.methods.rlrr.config import RLRRConfig
from vitune.methods.ssf import SSFConfig
from vitune.methods.vpt import VPTDeepConfig, VPTShallowConfig

OWN = {
    method.name: method
    for method in (
        own_method(LinearProbeConfig),
        own_method(SteppedProbeConfig),
        own_method(NearestClassMeanConfig),
        own_method(NearestNeighboursConfig),
        own_method(FullConfig),
        own_method(BitFitConfig),
        own_method(LayerNormConfig),
        own_method(PartialConfig),
        own_method(RLRRConfig),
        own_method(SSFConfig),
        own_method(HTAConfig),
        own_method(SequentialHTAConfig),
        own_method(ARCConfig),
        own_method(ARCAttentionConfig),
        own_method(APLAConfig),
        own_method(LoRAMulVPTAddConfig),
        own_method(LoRAAddConfig),
        own_method(VPTAddConfig),
        own_method(METConfig),
        own_method(MoPPAConfig),
        own_method(MoPPAMinConfig),
        own_method(FacTTTConfig),
        own_method(FacTTKConfig),
        own_method(AdaptFormerConfig),
        own_method(AdapterPlusConfig),
        own_method(HoulsbyConfig),
        own_method(PfeifferConfig),
        own_method(VPTShallowConfig),
        own_method(VPTDeepConfig),
    )
}
"""vitune's own methods by name."""

PROBE: str = LinearProbeConfig.method
"""The probe that runs start from and are compared with."""

METHODS.update(OWN)
load_entry_points()


def get_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        VituneError: there is no such method; the nearest names are given.
    """
    catch_up()
    if name in UNSUPPORTED:
        raise VituneError(
            f"method: got {name!r}, expected one for images: {UNSUPPORTED[name]}. "
            "'vitune methods' lists all."
        )
    if name not in METHODS:
        raise VituneError(
            f"method: got {name!r}, expected a known method. {nearest(name, METHODS)} "
            "'vitune methods' lists all."
        )
    return METHODS[name]
