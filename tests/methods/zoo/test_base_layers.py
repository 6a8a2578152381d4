"""Layers that only look like a Linear or Conv2d: called as they are, or refused at injection."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import register_parametrization

from vitune.errors import BackboneError, VituneError
from vitune.methods import METHODS, MethodLayer, get_method
from vitune.methods.core.base_layers import scales_with_weight

WORKS_ON_QUANTISED = ("adapter_plus", "adaptformer", "vpt_deep", "lora")
"""Methods that leave weights alone, and PEFT's LoRA."""

READS_WEIGHTS = ("rlrr", "ssf", "hta", "arc", "apla", "lora_mul_vpt_add", "fact_tt", "moppa")


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2}
    return VisionTransformer(**sizes, num_classes=3).eval()


def pixels() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def replaced(kind: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A ViT in which every linear of the blocks is what `kind` makes of it."""
    model = vit()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.startswith("blocks"):
            model.set_submodule(name, kind(module))
    return model


def of_class(kind: type[nn.Linear]) -> Callable[[nn.Linear], nn.Linear]:
    def made(linear: nn.Linear) -> nn.Linear:
        layer = kind(linear.in_features, linear.out_features)
        layer.load_state_dict(linear.state_dict())
        return layer

    return made


class Counted(nn.Linear):
    """The same map, with something beside it."""

    num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counted.num_calls += 1
        return F.linear(x, self.weight, self.bias)


class Doubled(nn.Linear):
    """Another map of the same weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.weight, self.bias)


class PackedLinear(nn.Linear):
    """Stands for bitsandbytes' Linear4bit: a packed weight of bytes, opened in every call."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.scale = linear.weight.detach().abs().max() / 127
        packed = (linear.weight.detach() / self.scale).round().to(torch.int8).view(-1, 1)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.view(self.out_features, self.in_features) * self.scale
        return F.linear(x, weight.to(x.dtype), self.bias)


class ScaledTensor(Tensor):
    """Stands for torchao's tensors, which name the number format they are opened to."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


class ScaledParameter(ScaledTensor, nn.Parameter):
    """A parameter of such a kind."""


def with_scaled_weight(linear: nn.Linear) -> nn.Linear:
    linear.weight = linear.weight.detach().as_subclass(ScaledParameter)
    return linear


def bitsandbytes_4bit(linear: nn.Linear) -> nn.Module:
    library = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    layer = library.nn.Linear4bit(
        linear.in_features, linear.out_features, compute_dtype=torch.float32
    )
    layer.load_state_dict(linear.state_dict())
    # On some CPUs it packs its weight anew at the first inference, after which it cannot train.
    layer.support_avx512bf16_for_cpu = False
    return layer.to("cpu")


def torchao_int8(linear: nn.Linear) -> nn.Module:
    library = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    library.quantize_(linear, library.Int8WeightOnlyConfig())
    return linear


QUANTISED = {
    "packed": PackedLinear,
    "tensor subclass": with_scaled_weight,
    "bitsandbytes 4 bit": bitsandbytes_4bit,
    "torchao int8": torchao_int8,
}


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.filterwarnings("ignore")
def test_quantised_linears_are_refused_and_the_text_names_what_works(kind: str) -> None:
    before = replaced(QUANTISED[kind])
    for method in (*READS_WEIGHTS, "full", "partial"):
        model = copy.deepcopy(before)
        with pytest.raises(BackboneError, match=r"got a .* whose weight is quantised") as refusal:
            get_peft_model(model, get_method(method).configure(model))
        assert not any(isinstance(module, MethodLayer) for module in model.modules())
        assert "one that does not merge ('vitune methods')" in str(refusal.value)
    for method in (*WORKS_ON_QUANTISED, "layernorm", "bitfit", "linear", "houlsby"):
        model = copy.deepcopy(before)
        adapted = get_peft_model(model, METHODS[method].configure(model))
        adapted.train()(pixels()).sum().backward()
        trained = [p for p in adapted.parameters() if p.requires_grad]
        assert trained and all(p.grad is not None for p in trained)


def test_a_linear_with_a_forward_of_its_own_that_is_the_same_map_is_adapted() -> None:
    model = replaced(of_class(Counted))
    expected = vit()(pixels())
    adapted = get_peft_model(model, get_method("rlrr").configure(model, {"init": "identity"}))
    torch.testing.assert_close(adapted.eval()(pixels()), expected)


@pytest.mark.parametrize("method", READS_WEIGHTS)
def test_a_linear_that_is_another_map_is_refused(method: str) -> None:
    model = replaced(of_class(Doubled))
    with pytest.raises(BackboneError, match=r"got 'Doubled', whose forward pass is not x Wᵀ \+ b"):
        get_peft_model(model, get_method(method).configure(model))


def test_a_weight_computed_from_others_is_refused() -> None:
    model = replaced(lambda linear: weight_norm(linear))
    for method in ("rlrr", "ssf", "full"):
        with pytest.raises(BackboneError, match="whose weight is computed from other parameters"):
            get_peft_model(model, get_method(method).configure(model))


@pytest.mark.parametrize("method", ["rlrr", "ssf", "arc", "lora_mul_vpt_add", "fact_tt", "moppa"])
def test_a_bias_computed_from_others_is_refused(method: str) -> None:
    """It was found out half-way through a merge, which left the network in pieces."""
    model = vit()
    register_parametrization(model.blocks[0].mlp.fc1, "bias", nn.Softplus())
    with pytest.raises(BackboneError, match="whose bias is computed from other parameters"):
        get_peft_model(model, get_method(method).configure(model))


def test_biases_train_beside_weights_computed_from_others() -> None:
    """torch keeps what it computes under the name under which our replaced parameters are kept."""
    model = replaced(lambda linear: weight_norm(linear))
    expected = model(pixels())
    adapted = get_peft_model(model, get_method("bitfit").configure(model)).eval()
    torch.testing.assert_close(adapted(pixels()), expected)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(0.1 * parameter.requires_grad)
    trained = adapted(pixels())
    assert not torch.allclose(trained, expected)
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(pixels()), expected)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(pixels()), trained)
    assert list(merged.blocks[0].mlp.fc1.parametrizations) == ["weight"]


def test_parameters_that_are_already_replaced_count_once() -> None:
    model = vit()
    number = get_method("full").configure(model).num_parameters(model, [])
    get_peft_model(model, get_method("full").configure(model))
    assert get_method("full").configure(model).num_parameters(model, []) == number


def test_a_sparse_weight_is_refused() -> None:
    model = vit()
    linear = model.blocks[0].mlp.fc1
    linear.weight = nn.Parameter(linear.weight.detach().to_sparse(), requires_grad=False)
    with pytest.raises(BackboneError, match=r"whose weight is sparse \(torch.sparse_coo\)"):
        get_peft_model(model, get_method("rlrr").configure(model))


def test_a_name_that_peft_uses_for_itself_is_refused() -> None:
    model = vit()
    model.base_layer = nn.Identity()
    with pytest.raises(BackboneError, match=r"got VisionTransformer .* child called 'base_layer'"):
        get_peft_model(model, get_method("rlrr").configure(model))


@pytest.mark.parametrize(
    ("kind", "scales"),
    [(nn.Conv2d, True), (Conv2dSame, True), (StdConv2d, False), (ScaledStdConv2d, False)],
)
def test_which_convolutions_scale_with_their_weight(kind: Any, scales: bool) -> None:
    """Told by trying; the answer is held against the convolution's own values."""
    torch.manual_seed(0)
    conv = kind(4, 6, 3, bias=True)
    state = torch.get_rng_state()
    assert scales_with_weight(conv) == scales
    assert torch.equal(torch.get_rng_state(), state)
    assert scales_with_weight(kind(4, 6, 3, bias=False)) == scales
    with torch.device("meta"):
        assert scales_with_weight(kind(4, 6, 3)) == scales
    x, before = torch.randn(1, 4, 8, 8), conv.eval()
    expected = 3 * before(x)
    with torch.no_grad():
        conv.weight.mul_(3)
        conv.bias.mul_(3)
    assert torch.allclose(conv(x), expected, atol=1e-4) == scales


def resnet(kind: type[nn.Conv2d]) -> nn.Module:
    torch.manual_seed(0)
    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=3, channels=(8, 8, 16, 16), stem_width=8)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            new = kind(
                module.in_channels,
                module.out_channels,
                module.kernel_size,
                stride=module.stride,
                padding=module.padding,
                bias=False,
            )
            model.set_submodule(name, new)
    return model.double().eval()


@pytest.mark.parametrize("kind", [Conv2dSame, StdConv2d, ScaledStdConv2d])
@pytest.mark.parametrize("rank", [1, 2])
def test_rlrr_goes_through_the_forward_pass_of_a_convolution(kind: Any, rank: int) -> None:
    model, x = resnet(kind), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = model(x)
    config = get_method("rlrr").configure(model, {"init": "identity", "rank": rank})
    adapted = get_peft_model(model, config).eval()
    assert torch.equal(adapted(x), expected)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    trained = adapted(x)
    trained.square().sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    assert (trained - expected).abs().max() > 1e-2 * expected.abs().max()
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(x), trained, rtol=1e-9, atol=1e-12)
    assert {type(m) for m in merged.modules() if isinstance(m, nn.Conv2d)} == {kind}


def test_ssf_folds_into_a_padding_convolution_and_refuses_a_standardising_one() -> None:
    model, x = resnet(Conv2dSame), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    adapted = get_peft_model(model, get_method("ssf").configure(model)).eval()
    expected = adapted(x)
    torch.testing.assert_close(adapted.merge_and_unload()(x), expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(BackboneError, match="got 'StdConv2d', which standardises its weight"):
        model = resnet(StdConv2d)
        get_peft_model(model, get_method("ssf").configure(model))


@pytest.mark.filterwarnings("ignore:(Already found|You are trying to modify)")
@pytest.mark.parametrize("method", ["rlrr", "ssf", "hta", "fact_tt", "apla", "houlsby", "moppa"])
def test_a_layer_with_an_adapter_of_peft_is_refused_as_that(method: str) -> None:
    expected = r"a layer that already carries the PEFT adapter default \(lora\.layer\.Linear\)"
    outer = get_peft_model(vit(), LoraConfig(target_modules="all-linear"))
    config = get_method(method).config_class()
    with pytest.raises(BackboneError, match=expected) as caught:
        get_peft_model(outer, config)
    assert "merge_and_unload()" in str(caught.value)
    merged = outer.merge_and_unload()
    assert torch.isfinite(get_peft_model(merged, config)(pixels())).all()


@pytest.mark.filterwarnings("ignore:(Already found|You are trying to modify)")
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("vpt_deep", "adapter_plus", r"default \(vitune\.methods\.vpt\.PromptedBlock\)"),
        ("adapter_plus", "vpt_deep", "already carries the PEFT adapter default"),
        ("rlrr", "ssf", "already carries the PEFT adapter default"),
        ("houlsby", "rlrr", "already carries the PEFT adapter default"),
        ("vpt_deep", "rlrr", r"inside 'base_model\.model\.blocks\.0', .* Add the adapters in"),
        ("adaptformer", "houlsby", r"inside 'base_model\.model\.blocks\.0', which already carries"),
    ],
)
def test_two_methods_at_one_layer_are_refused(first: str, second: str, expected: str) -> None:
    outer = get_peft_model(vit(), get_method(first).config_class())
    before = outer.eval()(pixels())
    with pytest.raises(BackboneError, match=expected):
        get_peft_model(outer, get_method(second).config_class())
    assert torch.equal(outer(pixels()), before)


@pytest.mark.parametrize(
    ("method", "arguments", "expected"),
    [
        ("apla", {"rank": 4000}, "rank: got 4000, expected at most 64"),
        ("ssf", {"roles": ("q",)}, r"got roles without \['k', 'v'\]"),
    ],
)
def test_a_second_adapter_is_checked_as_the_first(
    method: str, arguments: dict[str, Any], expected: str
) -> None:
    config_class = get_method(method).config_class
    model = get_peft_model(vit(), config_class())
    with pytest.raises(VituneError, match=expected):
        model.add_adapter("second", config_class(**arguments))
    assert torch.isfinite(model(pixels())).all()
