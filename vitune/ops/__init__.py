"""Tensor maths: each op as a short reference and as a fast version that must agree with it."""

from vitune.ops.attention import attention, attention_reference, prefers_attention
from vitune.ops.exit_adapter import exit_adapter
from vitune.ops.hardware import EMULATED_FROM, cpu_multiplies_bf16, slowdown
from vitune.ops.lean_step import first_token_only, lean_step
from vitune.ops.logistic import Curvature, Solution, Standardiser, row_chunks, solve_logistic
from vitune.ops.modes import usual_modes
from vitune.ops.partial_linear import partial_linear, partial_weight
from vitune.ops.rescaled_linear import (
    per_sample_scale_gradients,
    rescaled_linear,
    rescaled_linear_reference,
    rescaled_weight,
)
from vitune.ops.spectral import filtered, new_tau, response, route_entropy
from vitune.ops.temperature import (
    calibrated_losses,
    calibration_error_by_chance,
    effective_number,
    expected_calibration_error,
    fit_temperature,
    paired,
    temperature_pulls,
)
from vitune.ops.token_merging import (
    Matching,
    match_tokens,
    merged_tokens,
    merged_tokens_reference,
    sized_attention,
    sized_attention_reference,
    spread_tokens,
)
from vitune.ops.token_sampling import sample_tokens

__all__ = [
    "EMULATED_FROM",
    "Curvature",
    "Matching",
    "Solution",
    "Standardiser",
    "attention",
    "attention_reference",
    "calibrated_losses",
    "calibration_error_by_chance",
    "cpu_multiplies_bf16",
    "effective_number",
    "exit_adapter",
    "expected_calibration_error",
    "filtered",
    "first_token_only",
    "fit_temperature",
    "lean_step",
    "match_tokens",
    "merged_tokens",
    "merged_tokens_reference",
    "new_tau",
    "paired",
    "partial_linear",
    "partial_weight",
    "per_sample_scale_gradients",
    "prefers_attention",
    "rescaled_linear",
    "rescaled_linear_reference",
    "rescaled_weight",
    "response",
    "route_entropy",
    "row_chunks",
    "sample_tokens",
    "sized_attention",
    "sized_attention_reference",
    "slowdown",
    "solve_logistic",
    "spread_tokens",
    "temperature_pulls",
    "usual_modes",
]
