"""RLRR's linear map: the memory-lean version against the formula left to autograd."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitune.ops import (
    per_sample_scale_gradients,
    rescaled_linear,
    rescaled_linear_reference,
    rescaled_weight,
)

MODULE: Any = sys.modules["vitune.ops.rescaling"]
NAMES = ("x", "weight", "bias", "scale_out", "scale_in", "shift")


def problem(
    *,
    batch: tuple[int, ...] = (3, 4),
    num_out: int = 6,
    num_in: int = 5,
    parts: int = 1,
    rank: int = 1,
    has_bias: bool = True,
    has_shift: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)

    def new(*shape: int, trained: bool) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return values.requires_grad_(trained)

    return {
        "x": new(*batch, num_in, trained=True),
        "weight": new(num_out, num_in, trained=False),
        "bias": new(num_out, trained=False) if has_bias else None,
        "scale_out": new(num_out, rank, trained=True),
        "scale_in": new(parts, rank, num_in, trained=True),
        "shift": new(num_out, trained=True) if has_shift else None,
    }


def values_and_gradients(function: Any, tensors: dict[str, Any], **options: Any) -> list[Tensor]:
    """The output and the gradient of everything trained, for one fixed output gradient."""
    trained = {k: v for k, v in tensors.items() if v is not None and v.requires_grad}
    y = function(*tensors.values(), **options)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad((y * weights).sum(), list(trained.values()))]


def assert_same(found: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, check_dtype=False, **tolerance)


CASES = {
    "rank 1": {},
    "three parts": {"parts": 3},
    "rank 3": {"rank": 3},
    "rank 2, two parts": {"rank": 2, "parts": 2},
    "no bias": {"has_bias": False},
    "no shift": {"has_shift": False},
    "neither": {"has_bias": False, "has_shift": False},
    "one vector": {"batch": ()},
    "images": {"batch": (2, 3, 2)},
}


@pytest.mark.parametrize("tile", [1, 7, 1 << 20])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_reference(
    case: str, residual: bool, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "BUILD_TILE", tile)
    monkeypatch.setattr(MODULE, "REDUCTION_TILE", tile)
    tensors = problem(**CASES[case])
    assert_same(
        values_and_gradients(rescaled_linear, tensors, residual=residual),
        values_and_gradients(rescaled_linear_reference, tensors, residual=residual),
    )


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("rank", "parts"), [(1, 1), (1, 3), (2, 2)])
def test_gradients_agree_with_finite_differences(rank: int, parts: int, residual: bool) -> None:
    tensors = problem(rank=rank, parts=parts)

    def trained(x: Tensor, scale_out: Tensor, scale_in: Tensor, shift: Tensor) -> Tensor:
        weight, bias = tensors["weight"], tensors["bias"]
        assert weight is not None
        return rescaled_linear(x, weight, bias, scale_out, scale_in, shift, residual=residual)

    inputs = tuple(tensors[name] for name in ("x", "scale_out", "scale_in", "shift"))
    assert torch.autograd.gradcheck(trained, inputs)


@settings(deadline=None, max_examples=60)
@given(
    batch=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    part_size=st.integers(1, 4),
    num_in=st.integers(1, 6),
    parts=st.integers(1, 3),
    rank=st.integers(1, 3),
    has_bias=st.booleans(),
    has_shift=st.booleans(),
    residual=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_agrees_with_the_reference(
    batch: tuple[int, ...], part_size: int, residual: bool, parts: int, **options: Any
) -> None:
    tensors = problem(batch=batch, num_out=part_size * parts, parts=parts, **options)
    assert_same(
        values_and_gradients(rescaled_linear, tensors, residual=residual),
        values_and_gradients(rescaled_linear_reference, tensors, residual=residual),
    )


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), factor=st.floats(-3, 3))
def test_scaling_one_vector_scales_the_change_of_the_weight(seed: int, factor: float) -> None:
    tensors = problem(seed=seed)
    weight, out, into = (tensors[name] for name in ("weight", "scale_out", "scale_in"))
    assert weight is not None and out is not None and into is not None
    change = rescaled_weight(weight, out, into) - weight
    changed = rescaled_weight(weight, out * factor, into)
    torch.testing.assert_close(changed - weight, change * factor)
    torch.testing.assert_close(rescaled_weight(weight, out * 0, into), weight)


def test_what_needs_no_gradient_gets_none() -> None:
    tensors = problem()
    for name in ("x", "scale_in"):
        tensors[name] = tensors[name].detach()  # type: ignore[union-attr]
    assert_same(
        values_and_gradients(rescaled_linear, tensors),
        values_and_gradients(rescaled_linear_reference, tensors),
    )


def test_a_weight_that_trains_gets_its_gradient() -> None:
    tensors = problem()
    assert tensors["weight"] is not None
    tensors["weight"].requires_grad_()
    assert_same(
        values_and_gradients(rescaled_linear, tensors),
        values_and_gradients(rescaled_linear_reference, tensors),
    )


@pytest.mark.parametrize("most", [0, 1 << 17])
def test_only_x_and_parameters_are_kept_and_a_small_product(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "KEPT_WEIGHT", most)
    tensors = problem(num_out=6, parts=3)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rescaled_linear(*tensors.values())  # type: ignore[arg-type]
    known = {t.data_ptr() for t in tensors.values() if t is not None}
    further = [tensor for tensor in kept if tensor.data_ptr() not in known]
    assert [tensor.shape for tensor in further] == [tensors["weight"].shape][:most]
    assert len(kept) == 4 + len(further)


def test_no_gradient_of_the_size_of_the_weight_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "REDUCTION_TILE", 12)
    tensors = problem(num_out=9, num_in=6, parts=3)
    sizes: list[int] = []
    matmul = torch.Tensor.__matmul__

    def watched(a: Tensor, b: Tensor) -> Tensor:
        result = matmul(a, b)
        sizes.append(result.numel())
        return result

    y = rescaled_linear(*tensors.values())  # type: ignore[arg-type]
    tensors["x"].requires_grad_(False)  # type: ignore[union-attr]
    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    (y.sum() * 1.0).backward()
    products_of_x = [size for size in sizes if size != 12 * 6]
    assert len(sizes) > 9
    assert max(products_of_x) <= 12


@pytest.mark.parametrize("batch", [(), (4,)])
def test_single_tokens_and_rows_agree_with_the_reference(batch: tuple[int, ...]) -> None:
    tensors = problem(batch=batch)
    found = values_and_gradients(rescaled_linear, tensors)
    assert found[0].dim() == len(batch) + 1
    assert_same(found, values_and_gradients(rescaled_linear_reference, tensors))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("parts", [1, 3])
def test_second_derivatives_are_those_of_the_reference(
    parts: int, batch: tuple[int, ...], power: int
) -> None:
    tensors = problem(parts=parts, batch=batch)
    wanted = [tensors[name] for name in ("x", "scale_out", "scale_in", "shift")]
    found = []
    for function in (rescaled_linear, rescaled_linear_reference):
        y = function(*tensors.values())  # type: ignore[arg-type]
        # With power 1 the incoming gradient is a constant, and only what was saved can tell.
        first = torch.autograd.grad((y**power).sum(), wanted, create_graph=True)
        total = sum((value * value).sum() for value in first if value is not None)
        found.append(torch.autograd.grad(total, wanted, allow_unused=True))
    for own, expected in zip(*found, strict=True):
        if expected is None:
            assert own is None or not own.any()
        else:
            torch.testing.assert_close(own, expected)
    assert any(value is not None and value.abs().max() > 1e-3 for value in found[0])


def test_torch_func_sees_the_reference() -> None:
    tensors = problem(batch=(4,))

    def total(scale_out: Tensor, x: Tensor) -> Tensor:
        given = {**tensors, "scale_out": scale_out, "x": x}
        return rescaled_linear(*given.values()).square().sum()  # type: ignore[arg-type]

    scale_out, x = tensors["scale_out"], tensors["x"]
    assert scale_out is not None and x is not None
    each = torch.func.vmap(torch.func.grad(total), (None, 0))(scale_out.detach(), x.detach())
    for one, image in zip(each, x.detach(), strict=True):
        leaf = scale_out.detach().requires_grad_()
        torch.testing.assert_close(one, torch.autograd.grad(total(leaf, image), leaf)[0])


@pytest.mark.parametrize("parts", [1, 3])
def test_autocast_computes_in_its_own_format(parts: int) -> None:
    tensors = problem(dtype=torch.float32, parts=parts, batch=(8,), num_out=24, num_in=16)
    with torch.autocast("cpu", torch.bfloat16):
        found = values_and_gradients(rescaled_linear, tensors)
    assert found[0].dtype == torch.bfloat16
    assert [gradient.dtype for gradient in found[1:]] == [torch.float32] * 4
    expected = values_and_gradients(rescaled_linear_reference, tensors)
    assert_same(found, expected, atol=0.2, rtol=0.03)


def test_bf16_backbone_with_float32_scales() -> None:
    tensors = problem(dtype=torch.float32, batch=(8,), num_out=24, num_in=16)
    exact = values_and_gradients(rescaled_linear_reference, tensors)
    for name in ("x", "weight", "bias"):
        value = tensors[name]
        assert value is not None
        tensors[name] = value.detach().bfloat16().requires_grad_(name == "x")
    found = values_and_gradients(rescaled_linear, tensors)
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    assert found[2].dtype == torch.float32
    assert_same(found, exact, atol=0.2, rtol=0.03)


def test_the_reduction_in_bf16_leaves_y_and_dx_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "BF16_REDUCTION_FROM", 1)
    monkeypatch.setattr(MODULE, "cpu_multiplies_bf16", lambda: True)
    tensors = problem(dtype=torch.float32, batch=(64,), num_out=96, num_in=48, parts=3)
    exact = values_and_gradients(rescaled_linear, tensors, exact=True)
    found = values_and_gradients(rescaled_linear, tensors)
    y, grad_x, grad_out, grad_in, grad_shift = range(5)
    for index in (y, grad_x, grad_shift):
        assert torch.equal(found[index], exact[index])
    for index in (grad_out, grad_in):
        error = (found[index] - exact[index]).norm() / exact[index].norm()
        assert 0 < error < 5e-3


def test_small_products_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "cpu_multiplies_bf16", lambda: True)
    tensors = problem(dtype=torch.float32)
    found = values_and_gradients(rescaled_linear, tensors)
    exact = values_and_gradients(rescaled_linear, tensors, exact=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, exact, strict=True))


def test_inference_builds_the_same_map() -> None:
    tensors = problem(parts=3)
    with torch.no_grad():
        found = rescaled_linear(*tensors.values())  # type: ignore[arg-type]
        expected = rescaled_linear_reference(*tensors.values())  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)


def test_shapes_are_known_without_data() -> None:
    tensors: dict[str, Any] = {
        name: value if value is None else value.detach().to("meta")
        for name, value in problem(parts=3).items()
    }
    for name in ("x", "scale_out", "scale_in", "shift"):
        tensors[name].requires_grad_()
    y = rescaled_linear(**tensors)
    trained = [value for value in tensors.values() if value is not None and value.requires_grad]
    found = [y, *torch.autograd.grad(y.sum(), trained)]
    assert [tuple(t.shape) for t in found] == [(3, 4, 6), (3, 4, 5), (6, 1), (3, 1, 5), (6,)]
    assert all(tensor.is_meta for tensor in found)


def test_torch_compile_takes_it_whole() -> None:
    tensors: dict[str, Any] = problem(dtype=torch.float32, parts=3)
    compiled = torch.compile(rescaled_linear, backend="aot_eager", fullgraph=True)
    assert_same(
        values_and_gradients(compiled, tensors), values_and_gradients(rescaled_linear, tensors)
    )


@pytest.mark.parametrize(("num_parts", "rank", "num_tokens"), [(1, 1, 20), (3, 2, 20), (3, 2, 3)])
def test_gradients_per_image_are_those_of_each_image_alone(
    num_parts: int, rank: int, num_tokens: int
) -> None:
    """With many tokens by a reduction per image, with few by products: the same numbers."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, num_tokens, 5).double(), torch.randn(6, 5).double()
    scales = (torch.randn(6, rank).double(), torch.randn(num_parts, rank, 5).double())
    grad = torch.randn(4, num_tokens, 6).double()
    of_out, of_in = per_sample_scale_gradients(x, grad, weight, *scales)
    for image in range(4):
        inputs = [scale.clone().requires_grad_() for scale in scales]
        y = rescaled_linear_reference(x[image], weight, None, *inputs, None)
        alone = torch.autograd.grad(y, inputs, grad[image])
        torch.testing.assert_close((of_out[image], of_in[image]), alone, rtol=1e-10, atol=1e-10)


def test_gradients_per_image_in_bfloat16_are_asked_for_by_the_same_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    x, weight, grad = torch.randn(2, 20, 8), torch.randn(8, 8), torch.randn(2, 20, 8)
    scales = (torch.randn(8, 1), torch.randn(1, 1, 8))
    full = per_sample_scale_gradients(x, grad, weight, *scales)
    monkeypatch.setattr("vitune.ops.rescaling._reduces_in_bf16", lambda *_: True)
    exact = per_sample_scale_gradients(x, grad, weight, *scales, exact=True)
    rounded = per_sample_scale_gradients(x, grad, weight, *scales)
    torch.testing.assert_close(exact, full, rtol=0, atol=0)
    for value, other in zip(rounded, full, strict=True):
        error = (value - other).norm() / other.norm()
        assert 1e-4 < error < 1e-2
