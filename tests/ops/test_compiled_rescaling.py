"""RLRR under torch.compile: one operator, no graph break, the gradients of the plain version."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from vitune.adapters import inject
from vitune.methods import get_method
from vitune.ops import rescaled_linear, rescaled_linear_reference
from vitune.testing.tiny_backbones import build, images

OP = torch.ops.vitune.rescaled_linear


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor | None, ...]:
    x, weight, bias = torch.randn(4, 5, 6), torch.randn(9, 6), torch.randn(9)
    scale_out, scale_in, shift = torch.randn(9, 2), torch.randn(3, 2, 6), torch.randn(9)
    made = [t.to(dtype) for t in (x, weight, bias, scale_out, scale_in, shift)]
    for index in (0, 3, 4, 5):
        made[index].requires_grad_()
    return tuple(made)


@pytest.mark.parametrize("without", [(), (2, 5)])
def test_the_operator_is_what_pytorch_expects_of_one(without: tuple[int, ...]) -> None:
    """Schema, fake shapes and autograd registration, by PyTorch's own checks."""
    given = [None if i in without else t for i, t in enumerate(tensors())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(OP, (*given, True, True, 1.0))


@pytest.mark.parametrize("residual", [True, False])
def test_the_compiled_function_is_the_reference(residual: bool) -> None:
    given = tensors()
    compiled = torch.compile(rescaled_linear, backend="aot_eager", fullgraph=True)
    wanted = [given[i] for i in (0, 3, 4, 5)]
    grad = torch.randn(4, 5, 9, dtype=torch.float64)
    results = [f(*given, residual=residual) for f in (compiled, rescaled_linear_reference)]
    torch.testing.assert_close(*results)
    found, expected = (torch.autograd.grad(y, wanted, grad) for y in results)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(
    torch.__version__ < TorchVersion("2.10"),
    reason="torch 2.6 breaks the graph at PEFT's context manager; 2.10 is the oldest that did not",
)
def test_a_whole_network_compiles_without_a_graph_break() -> None:
    backbone, x = build("vit"), images("vit")
    model = inject(backbone, get_method("rlrr").configure(backbone, {})).train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    trained = [p for p in model.parameters() if p.requires_grad]

    def gradients(network: torch.nn.Module) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=True):
            logits = network(x)
        return torch.autograd.grad(logits.float().square().sum(), trained)

    for a, b in zip(gradients(compiled), gradients(model), strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1 * b.abs().max().item())
