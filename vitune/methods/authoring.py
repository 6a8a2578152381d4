"""Everything that an author of a method imports, in one module."""

from __future__ import annotations

from vitune.backbones.sites import Site, find_sites
from vitune.errors import AdapterError, BackboneError, VituneError, listed
from vitune.methods.core.base_layers import convolve, require_plain_linear
from vitune.methods.core.block_hooks import NOTHING, Call, with_tokens, without_tokens
from vitune.methods.core.bottleneck import (
    BottleneckLayer,
    block_width,
    bottleneck_parameters,
    truncated_normal,
)
from vitune.methods.core.combination import AdapterState, check_weights, require_combining
from vitune.methods.core.coverage import coverage_notice, weight_coverage
from vitune.methods.core.in_place import InPlaceConfig, TrainedParameter, own_parameters, stand_in
from vitune.methods.core.in_projection import linear_view
from vitune.methods.core.layer import MethodLayer, Tensors
from vitune.methods.core.linear_layers import (
    BLOCK_LINEARS,
    LinearLayer,
    has_bias,
    linear_default,
    linear_shape,
    require_linear,
    uniform,
    xavier_uniform,
)
from vitune.methods.core.method_config import Counts, MethodConfig, Roles
from vitune.methods.core.peft_options import ALL_LINEAR, OPTIONS, PREFIX
from vitune.methods.core.roles import (
    LINEAR_ROLES,
    NORM_ROLES,
    QKV_PARTS,
    choose_sites,
    expand_roles,
    parts_of,
    require_all_parts,
)
from vitune.methods.core.scale_shift import scale_shift_class
from vitune.methods.core.token_checks import (
    prefix_tokens,
    require_features_last,
    require_more_tokens,
)
from vitune.methods.core.value_checks import check_choice, check_rank, check_rate, check_share
from vitune.methods.core.wrapper import BlockConfig, WrapperLayer, tapped

__all__ = [
    "ALL_LINEAR",
    "BLOCK_LINEARS",
    "LINEAR_ROLES",
    "NORM_ROLES",
    "NOTHING",
    "OPTIONS",
    "PREFIX",
    "QKV_PARTS",
    "AdapterError",
    "AdapterState",
    "BackboneError",
    "BlockConfig",
    "BottleneckLayer",
    "Call",
    "Counts",
    "InPlaceConfig",
    "LinearLayer",
    "MethodConfig",
    "MethodLayer",
    "Roles",
    "Site",
    "Tensors",
    "TrainedParameter",
    "VituneError",
    "WrapperLayer",
    "block_width",
    "bottleneck_parameters",
    "check_choice",
    "check_rank",
    "check_rate",
    "check_share",
    "check_weights",
    "choose_sites",
    "convolve",
    "coverage_notice",
    "expand_roles",
    "find_sites",
    "has_bias",
    "linear_default",
    "linear_shape",
    "linear_view",
    "listed",
    "own_parameters",
    "parts_of",
    "prefix_tokens",
    "require_all_parts",
    "require_combining",
    "require_features_last",
    "require_linear",
    "require_more_tokens",
    "require_plain_linear",
    "scale_shift_class",
    "stand_in",
    "tapped",
    "truncated_normal",
    "uniform",
    "weight_coverage",
    "with_tokens",
    "without_tokens",
    "xavier_uniform",
]
