"""Gradients that are exact, or an error: checkpointing, second order, torch.func, torch.export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint

from vitune.backbones import find_sites, logits_of
from vitune.methods import get_method
from vitune.testing.cases import CASES, each_case, each_method, trained
from vitune.testing.tiny_backbones import build, images

TWO = [case for case in CASES if case[1] in ("vit", "swin")]
each_of_two = pytest.mark.parametrize(("method", "backbone"), TWO)
"""Plain and windowed attention: what is dear to compute twice is computed on these alone."""

TOLERANCE = 1e-9
STEP = 1e-6  # so short that no ReLU switches within it


def in_float64(method: str, backbone: str) -> PeftModel:
    return trained(method, backbone).double()


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return logits_of(model(x)).log_softmax(-1)[:, 0].sum()


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What one backward pass leaves on everything that trains."""
    model.zero_grad(set_to_none=True)
    loss(model, x).backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    if found.keys() != expected.keys():
        return False
    return all(torch.allclose(found[k], expected[k], rtol=0, atol=TOLERANCE) for k in expected)


class Recomputed(nn.Module):
    """A block inside a checkpoint, as users write it."""

    def __init__(self, block: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.block, self.reentrant = block, reentrant

    def forward(self, x: Tensor, **options: Any) -> Any:
        return checkpoint(self.block, x, use_reentrant=self.reentrant, **options)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@each_case
@pytest.mark.parametrize("reentrant", [False, True])
def test_blocks_inside_checkpoints_have_exact_gradients(
    method: str, backbone: str, reentrant: bool
) -> None:
    if backbone == "transformers_vit":
        model, x = in_float64(method, backbone), images(backbone).double()
        x.requires_grad_(reentrant)  # without a gradient at its door a reentrant one has none
        expected = gradients(model, x)
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
        assert agree(gradients(model.train(), x), expected)
        return
    model, x = in_float64(method, backbone), images(backbone).double().requires_grad_(reentrant)
    expected = gradients(model, x)
    network = model.get_base_model()
    names = {site.name for site in find_sites(build(backbone)) if site.role == "block"}
    assert names
    for name in names:
        network.set_submodule(name, Recomputed(network.get_submodule(name), reentrant=reentrant))
    found = {name.replace(".block.", "."): v for name, v in gradients(model, x).items()}
    assert agree(found, {name.replace(".block.", "."): v for name, v in expected.items()})


def reached(model: nn.Module, x: Tensor) -> list[nn.Parameter]:
    """The trained parameters that the logits depend on: heads of early exits are not among them."""
    trained_ones = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss(model, x), trained_ones, allow_unused=True)
    return [p for p, grad in zip(trained_ones, found, strict=True) if grad is not None]


@pytest.mark.parametrize("method", ["bitfit", "met", "rlrr"])
def test_an_adapter_made_in_inference_mode_trains(method: str) -> None:
    base = build("vit")
    with torch.inference_mode():
        model = get_peft_model(base, get_method(method).configure(base))
    loss(model, images("vit")).backward()
    assert not any(parameter.is_inference() for parameter in model.parameters())


@each_of_two
def test_second_order_gradients_are_right(method: str, backbone: str) -> None:
    """Against differences of the first ones along one direction, by a rule of fourth order."""
    model, x = in_float64(method, backbone), images(backbone).double()
    trained_ones = reached(model, x)
    starts = [p.detach().clone() for p in trained_ones]
    torch.manual_seed(5)
    direction = [torch.randn_like(p) for p in trained_ones]

    def slope(at: float = 0.0) -> Tensor:
        with torch.no_grad():
            for p, start, d in zip(trained_ones, starts, direction, strict=True):
                p.copy_(start + at * d)
        first = torch.autograd.grad(loss(model, x), trained_ones, create_graph=True)
        return sum((g * d).sum() for g, d in zip(first, direction, strict=True))

    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's other ones raise at a second derivative
        second = torch.autograd.grad(slope(), trained_ones)
        ends = {step: slope(step * STEP).item() for step in (-2, -1, 1, 2)}
    found = sum((s * d).sum() for s, d in zip(second, direction, strict=True)).item()
    expected = (8 * (ends[1] - ends[-1]) - (ends[2] - ends[-2])) / (12 * STEP)
    assert abs(expected) > 1e-3
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap over attention
@each_of_two
def test_torch_func_gives_the_same_gradients(method: str, backbone: str) -> None:
    model, x = in_float64(method, backbone), images(backbone).double()
    expected = gradients(model, x)
    held = {n: p.detach() for n, p in model.named_parameters() if n in expected}

    def of(values: dict[str, Tensor], image: Tensor) -> Tensor:
        return logits_of(functional_call(model, values, (image,))).log_softmax(-1)[:, 0].sum()

    assert agree(torch.func.grad(of)(held, x), expected)
    each = torch.func.vmap(torch.func.grad(of), in_dims=(None, 0))(held, x[:, None])
    assert agree({name: value.sum(0) for name, value in each.items()}, expected)


@pytest.mark.skipif(
    torch.__version__ < TorchVersion("2.10"),
    reason="torch 2.6 cannot export PEFT's context manager; 2.10 is the oldest that was tried",
)
@each_method
def test_unmerged_models_are_exported(method: str) -> None:
    model, x = trained(method, "vit"), images("vit")
    exported = torch.export.export(model, (x,)).module()
    assert torch.allclose(exported(x), model(x), atol=1e-5)
