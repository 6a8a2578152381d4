"""Each method against its formula written out in float64, its start, and its refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from timm.models.eva import Eva
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.errors import BackboneError, VituneError
from vitune.methods import get_method
from vitune.methods.core.in_projection import linear_view
from vitune.ops.partial_linear import partial_linear, partial_linear_reference
from vitune.ops.spectral import cosine_basis, filtered, response, route_entropy

D = 12


def tiny(**options: object) -> VisionTransformer:
    torch.manual_seed(0)
    settings = {
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": D,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2,
        "num_classes": 3,
    }
    return VisionTransformer(**{**settings, **options})


def adapted(name: str, **arguments: Any) -> PeftModel:
    """A small ViT in float64 with an adapter whose values are all random."""
    model = tiny().double()
    peft_model = get_peft_model(model, get_method(name).configure(model, arguments)).eval()
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return peft_model


def layer(model: PeftModel, path: str) -> Any:
    return model.get_base_model().get_submodule(path)


def reflection(v: Tensor) -> Tensor:
    return torch.eye(len(v), dtype=v.dtype) - 2 * torch.outer(v, v) / v.dot(v)


def check(wrapped: Any, weight: Tensor, bias: Tensor, x: Tensor | None = None) -> None:
    """The layer's forward pass and its merged tensors are x Wᵀ + b."""
    x = torch.randn(5, weight.shape[1], dtype=torch.float64) if x is None else x
    torch.testing.assert_close(wrapped(x), F.linear(x, weight, bias))
    tensors = wrapped.effective_tensors()
    torch.testing.assert_close(tensors["weight"], weight)
    torch.testing.assert_close(tensors["bias"], bias)


def test_hta_on_a_fused_qkv_and_on_a_rectangle() -> None:
    model = adapted("hta", rank=2, roles=["q", "v", "fc1"])
    qkv = layer(model, "blocks.0.attn.qkv")
    expected = qkv.base_layer.weight.detach().clone()
    for index, part in enumerate((0, 2)):
        diagonal = torch.diag(qkv.diagonal["default"][index])
        change = (
            reflection(qkv.v_out["default"][index])
            @ diagonal
            @ reflection(qkv.v_in["default"][index])
        )
        change = change + qkv.up["default"][index] @ qkv.down["default"][index]
        expected[part * D : (part + 1) * D] += change
    check(qkv, expected, qkv.base_layer.bias)
    fc1 = layer(model, "blocks.1.mlp.fc1")
    diagonal = torch.zeros(2 * D, D, dtype=torch.float64)
    diagonal[:D] = torch.diag(fc1.diagonal["default"][0])
    change = reflection(fc1.v_out["default"][0]) @ diagonal @ reflection(fc1.v_in["default"][0])
    change = change + fc1.up["default"][0] @ fc1.down["default"][0]
    check(fc1, fc1.base_layer.weight + change, fc1.base_layer.bias)


def test_sequential_hta() -> None:
    model = adapted("hta_sequential", rank=3)
    fc2 = layer(model, "blocks.0.mlp.fc2")
    matrix = (
        reflection(fc2.v_out["default"])
        @ torch.diag(fc2.diagonal["default"])
        @ reflection(fc2.v_in["default"])
    ) + fc2.up["default"] @ fc2.down["default"]
    check(fc2, matrix @ fc2.base_layer.weight, matrix @ fc2.base_layer.bias)


@pytest.mark.parametrize(("place", "path"), [("attn", "attn.qkv"), ("mlp", "mlp.fc1")])
def test_arc(place: str, path: str) -> None:
    model = adapted("arc", rank=5)
    wrapped, shared = layer(model, f"blocks.1.{path}"), model.base_model.shared_state["default"]
    basis = getattr(shared, f"{place}_basis_{D}")
    scale, shift = getattr(shared, f"{place}_scale_1"), getattr(shared, f"{place}_shift_1")
    base = wrapped.base_layer
    change = torch.eye(D, dtype=torch.float64) + basis @ torch.diag(scale) @ basis.T
    check(wrapped, base.weight @ change, base.bias + base.weight @ shift)


@pytest.mark.parametrize(("path", "chunks"), [("attn.qkv", (3, 1)), ("mlp.fc2", (1, 2))])
@pytest.mark.parametrize("name", ["fact_tt", "fact_tk"])
def test_fact(name: str, path: str, chunks: tuple[int, int]) -> None:
    model = adapted(name, rank=4, scale=0.7)
    wrapped, shared = layer(model, f"blocks.0.{path}"), model.base_model.shared_state["default"]
    down, up = getattr(shared, f"down_{D}"), getattr(shared, f"up_{D}")
    expected = wrapped.base_layer.weight.detach().clone()
    for out in range(chunks[0]):
        for into in range(chunks[1]):
            if name == "fact_tt":
                core = wrapped.cores["default"][out, into]
            else:
                third = wrapped.cores["default"][:, out * chunks[1] + into]
                slices = getattr(shared, f"core_{D}")
                core = sum(third[c] * slices[c] for c in range(4))
            tile = expected[out * D : (out + 1) * D, into * D : (into + 1) * D]
            tile += 0.7 * up @ core @ down
    check(wrapped, expected, wrapped.base_layer.bias)


def test_pace_base_adapters() -> None:
    mul = layer(adapted("lora_mul_vpt_add", rank=3), "blocks.0.mlp.fc1")
    w, b = mul.base_layer.weight, mul.base_layer.bias
    up, down, offset, prompt, mixer = (
        getattr(mul, part)["default"] for part in ("up", "down", "offset", "prompt", "mixer")
    )
    pushed = w @ (prompt @ mixer)[:, 0]
    check(mul, w * (1 + up @ down), b * (1 + offset) + pushed)
    add = layer(adapted("lora_add", rank=3), "blocks.0.mlp.fc2")
    change = add.up["default"] @ add.down["default"]
    bias = add.base_layer.bias + add.offset["default"]
    check(add, add.base_layer.weight + change, bias)
    only = layer(adapted("vpt_add", rank=2), "blocks.0.attn.proj")
    pushed = only.base_layer.weight @ (only.prompt["default"] @ only.mixer["default"])[:, 0]
    check(only, only.base_layer.weight, only.base_layer.bias + pushed)


def test_apla_trains_its_rows_and_remembers_them() -> None:
    model = adapted("apla", rank=4, seed=5)
    proj = layer(model, "blocks.0.attn.proj")
    indices = proj.indices["default"]
    assert len(set(indices.tolist())) == 4
    weight, bias = proj.base_layer.weight.clone(), proj.base_layer.bias.clone()
    weight[indices], bias[indices] = proj.rows["default"], proj.row_bias["default"]
    check(proj, weight, bias)
    other = layer(adapted("apla", rank=4, seed=6), "blocks.0.attn.proj").indices["default"]
    assert not torch.equal(indices, other)
    assert not torch.equal(indices, layer(model, "blocks.1.attn.proj").indices["default"])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 100), st.booleans())
def test_partial_linear_equals_its_reference(out: int, into: int, seed: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rank = 1 + seed % out
    indices = torch.randperm(out, generator=generator)[:rank]
    weight, bias = random(out, into), random(out) if biased else None
    leaves = [random(2, 3, into), random(rank, into), *([random(rank)] if biased else [])]
    grad, results = random(2, 3, out), []
    for function in (partial_linear, partial_linear_reference):
        x, rows, *row_bias = [leaf.clone().requires_grad_() for leaf in leaves]
        y = function(x, weight, bias, rows, row_bias[0] if biased else None, indices)
        y.backward(grad)
        results.append([y, x.grad, rows.grad, *(b.grad for b in row_bias)])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_partial_linear_of_any_batch_is_differentiable_twice(batch: tuple[int, ...]) -> None:
    indices, (weight, bias) = torch.tensor([3, 1]), (torch.randn(4, 5), torch.randn(4))
    leaves = [torch.randn(*batch, 5), torch.randn(2, 5), torch.randn(2)]
    weight, bias, *leaves = (tensor.double() for tensor in (weight, bias, *leaves))
    leaves, found = [leaf.requires_grad_() for leaf in leaves], []
    for function in (partial_linear, partial_linear_reference):
        x, rows, row_bias = leaves
        y = function(x, weight, bias, rows, row_bias, indices)
        once = torch.autograd.grad(y.square().sum(), leaves, retain_graph=True)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        total = sum(value.square().sum() for value in first)
        found.append([y, *once, *first, *torch.autograd.grad(total, leaves)])
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow)


def test_partial_linear_keeps_the_input_once_and_no_weight_gradient() -> None:
    weight, x = torch.randn(64, 32), torch.randn(7, 32, requires_grad=True)
    rows = torch.randn(4, 32, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        partial_linear(x, weight, None, rows, None, torch.arange(4))
    pointers = [tensor.data_ptr() for tensor in saved]
    assert len(pointers) == len(set(pointers)) == 4
    assert sum(t.numel() for t in saved) == x.numel() + weight.numel() + rows.numel() + 4


def test_adaptformer_reads_the_residual_stream_and_skips_layer_scale() -> None:
    model = tiny(init_values=0.1).double()
    wrapped_model = get_peft_model(model, get_method("adaptformer").configure(model)).eval()
    block = layer(wrapped_model, "blocks.0")
    with torch.no_grad():
        block.up["default"].normal_()
    x = torch.randn(2, 5, D, dtype=torch.float64)
    inner = block.base_layer
    middle = x + inner.ls1(inner.attn(inner.norm1(x)))
    hidden = F.relu(F.linear(middle, block.down["default"], block.down_bias["default"]))
    branch = F.linear(hidden, block.up["default"], block.up_bias["default"])
    expected = middle + inner.ls2(inner.mlp(inner.norm2(middle))) + 0.1 * branch
    torch.testing.assert_close(block(x), expected)


def test_adapter_plus_and_houlsby() -> None:
    block = layer(adapted("adapter_plus", rank=3), "blocks.1")
    x = torch.randn(2, 5, D, dtype=torch.float64)
    y = block.base_layer(x)
    hidden = F.gelu(F.linear(y, block.down["default"], block.down_bias["default"]))
    branch = F.linear(hidden, block.up["default"], block.up_bias["default"])
    torch.testing.assert_close(block(x), y + block.scale["default"] * branch)
    for name, activation in (("houlsby", F.gelu), ("pfeiffer", F.relu)):
        fc2 = layer(adapted(name, rank=3), "blocks.0.mlp.fc2")
        h = fc2.base_layer(z := torch.randn(4, 2 * D, dtype=torch.float64))
        inside = activation(F.linear(h, fc2.down["default"], fc2.down_bias["default"]))
        branch = F.linear(inside, fc2.up["default"], fc2.up_bias["default"])
        torch.testing.assert_close(fc2(z), h + branch)


def test_adapter_plus_drops_whole_images_and_keeps_the_mean() -> None:
    block = layer(adapted("adapter_plus", rank=3, drop_path=0.5), "blocks.1").train()
    x = torch.randn(1, 5, D, dtype=torch.float64).expand(200, -1, -1)
    change = (block(x) - block.base_layer(x)).detach()
    full = (block.eval()(x) - block.base_layer(x)).detach()
    is_kept = change.abs().amax((1, 2)) > 1e-9
    torch.testing.assert_close(change[is_kept], 2 * full[is_kept])
    assert 60 < int(is_kept.sum()) < 140


@pytest.mark.parametrize("name", ["vpt_deep", "vpt_shallow"])
def test_prompts_stand_between_prefix_and_patches(name: str) -> None:
    model = tiny(reg_tokens=2).double()
    prompted = get_peft_model(model, get_method(name).configure(model, {"num_prompts": 3})).eval()
    base = prompted.get_base_model()
    x = torch.randn(2, 3 + 4, D, dtype=torch.float64)
    expected = x
    for index, block in enumerate(base.blocks):
        inner = getattr(block, "base_layer", block)
        if name == "vpt_deep" or index == 0:
            prompts = block.prompts["default"].expand(2, -1, -1)
            expected = torch.cat([expected[:, :3], prompts, expected[:, -4:]], dim=1)
        expected = inner(expected)
    expected = torch.cat([expected[:, :3], expected[:, -4:]], dim=1)
    torch.testing.assert_close(base.blocks(x), expected)
    bound = math.sqrt(6 / (3 * 8 * 8 + D))
    start = base.blocks[0].prompts["default"]
    assert start.abs().max() <= bound and start.abs().max() > 0.8 * bound


def test_cosine_transform_is_orthonormal_and_spectral_filter_is_what_it_says() -> None:
    basis = cosine_basis(5, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(basis @ basis.T, torch.eye(5, dtype=torch.float64))
    x = torch.randn(2, 1 + 6, 4, dtype=torch.float64)
    ones = torch.ones(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(filtered(x, ones, 1), x)
    mean_only = torch.zeros_like(ones)
    mean_only[0, 0] = 1
    smoothed = filtered(x, mean_only, 1)
    torch.testing.assert_close(smoothed[:, 1:], x[:, 1:].mean(1, keepdim=True).expand(-1, 6, -1))
    torch.testing.assert_close(smoothed[:, 0], x[:, 0])
    with pytest.raises(BackboneError, match=r"spectral filter: got tokens \(2, 7, 4\)"):
        filtered(x, ones, 0)


def test_response_mixes_heat_wave_and_poisson() -> None:
    route = torch.tensor([[0.0], [0.0], [0.0]])
    tau = torch.tensor([0.1, 0.2, 0.6]).view(3, 1, 1)
    gain = response(torch.ones(3, 2, 2, 1), tau, route, torch.ones(1), (2, 2))
    assert gain.shape == (2, 2, 1, 1)
    omega = 2 * (math.pi / 2) ** 2
    expected = (math.exp(-omega * 0.1) + math.cos(omega * 0.2) + 0.6) / 3
    assert gain[1, 1].item() == pytest.approx(expected, rel=1e-5)
    assert gain[0, 0].item() == pytest.approx((1 + 1 + 0.6) / 3, rel=1e-5)
    entropy = route_entropy(route, torch.ones(1)).item()
    assert entropy == pytest.approx(math.log(3) / 3, rel=1e-5)


def test_moppa_leaves_q_and_k_alone() -> None:
    model = adapted("moppa")
    qkv = layer(model, "blocks.0.attn.qkv")
    change = qkv.effective_tensors()["weight"] - qkv.base_layer.weight
    assert not change[: 2 * D].any() and change[2 * D :].all()
    assert isinstance(linear_view(qkv.base_layer), nn.Linear)


def eva() -> nn.Module:
    return Eva(
        img_size=16,
        patch_size=8,
        embed_dim=16,
        depth=1,
        num_heads=2,
        num_classes=3,
        use_rot_pos_emb=True,
    )


def post_norm() -> nn.Module:
    return tiny(block_fn=ResPostBlock)


def resnet() -> nn.Module:
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, channels=(8, 8, 8, 8), stem_width=8)


def attach(name: str, model: nn.Module, **arguments: Any) -> None:
    get_peft_model(model, get_method(name).configure(model, arguments))


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("ssf", {"init": "papier"}, r"init: got 'papier', expected one of .*Did you mean paper"),
        ("ssf", {"roles": ["q", "fc1"]}, r"got roles without \['k', 'v'\], expected all of q"),
        ("hta", {"rank": -1}, "rank: got -1, expected an integer of at least 0"),
        ("arc", {"rank": 0}, "rank: got 0, expected an integer of at least 1"),
        ("arc", {"dropout": 1.0}, r"dropout: got 1.0, expected a rate in \[0, 1\)"),
        ("apla", {"rank": 13}, "rank: got 13, expected at most 12"),
        ("partial", {"num_blocks": 3}, "num_blocks: got 3, expected at most 2"),
        ("adaptformer", {"roles": ["fc1"]}, "roles: got .*expected none: AdaptFormer acts on"),
        ("moppa", {"num_groups": 5}, "num_groups: got 5, expected a divisor of 12"),
        ("moppa", {"num_groups": -1}, "num_groups: got -1, expected a divisor of 12"),
        ("moppa_min", {"num_groups": 3}, "num_groups: got 3, expected a divisor of rank 8"),
        ("vpt_deep", {"num_prompts": True}, "num_prompts: got True, expected an integer"),
    ],
)
def test_wrong_values(name: str, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(VituneError, match=match):
        attach(name, tiny(), **arguments)


@pytest.mark.parametrize(
    ("name", "build", "match"),
    [
        ("layernorm", resnet, "LayerNorm only: got ResNet without a LayerNorm"),
        ("partial", resnet, "Partial-k: got ResNet without transformer blocks"),
        ("adaptformer", resnet, "AdaptFormer roles: got .* expected roles of this backbone"),
        ("hta", resnet, "HTA roles: got .* expected roles of this backbone"),
        ("vpt_deep", eva, "VPT-deep: got a backbone with positions inside attention"),
        ("moppa", post_norm, "got a backbone that .* has no norm before attention"),
        ("moppa_min", post_norm, "got a block whose norm follows attention"),
    ],
)
def test_backbones_without_what_a_method_needs(name: str, build: Any, match: str) -> None:
    with pytest.raises(BackboneError, match=match):
        attach(name, build())


def test_fact_needs_multiples_of_the_width() -> None:
    with pytest.raises(BackboneError, match="FacT: got a linear of 18 outputs and 12 inputs"):
        attach("fact_tt", tiny(mlp_ratio=1.5))


def test_prompts_refuse_a_mask_at_run_time() -> None:
    model = tiny()
    prompted = get_peft_model(model, get_method("vpt_deep").configure(model))
    block = prompted.get_base_model().blocks[0]
    with pytest.raises(
        BackboneError,
        match=r"got a block that is called with positions or a mask of shape \(5, 5\)",
    ):
        block(torch.randn(1, 5, D), attn_mask=torch.ones(5, 5))
