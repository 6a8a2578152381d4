"""Tensor maths: each op as a short reference and as a fast version that must agree with it."""

from vitune.ops.rescaled_linear import (
    rescaled_linear as rescaled_linear,
)
from vitune.ops.rescaled_linear import (
    rescaled_linear_reference as rescaled_linear_reference,
)
from vitune.ops.rescaled_linear import rescaled_weight as rescaled_weight
