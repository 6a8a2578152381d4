"""Tensor maths: each op as a short reference and as a fast version that must agree with it."""

from vitune.ops.attention import attention as attention
from vitune.ops.attention import attention_reference as attention_reference
from vitune.ops.attention import prefers_attention as prefers_attention
from vitune.ops.exit_adapter import exit_adapter as exit_adapter
from vitune.ops.hardware import cpu_multiplies_bf16 as cpu_multiplies_bf16
from vitune.ops.lean_step import first_token_only as first_token_only
from vitune.ops.lean_step import lean_step as lean_step
from vitune.ops.rescaled_linear import (
    rescaled_linear as rescaled_linear,
)
from vitune.ops.rescaled_linear import (
    rescaled_linear_reference as rescaled_linear_reference,
)
from vitune.ops.rescaled_linear import rescaled_weight as rescaled_weight
from vitune.ops.token_sampling import sample_tokens as sample_tokens
