"""What transformers records of an adapted block is what the next block gets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from vitune.backbones import find_sites
from vitune.methods import OWN, get_method
from vitune.methods.core.wrapper import WrapperLayer

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TOKENS = 17
MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)),
    "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES)),
    "dinov2": lambda: transformers.Dinov2Backbone(
        transformers.Dinov2Config(**SIZES, out_indices=[1, 2, 3], apply_layernorm=False)
    ),
}
METHODS = (
    "adapter_plus",
    "adaptformer",
    "houlsby",
    "met",
    "moppa",
    "moppa_min",
    "pfeiffer",
    "vpt_deep",
    "vpt_shallow",
)
HEADLESS = {"met"}
"""Methods that need a classifier."""

each_method = pytest.mark.parametrize("method", METHODS)


def network(backbone: str = "vit") -> nn.Module:
    torch.manual_seed(0)
    return MODELS[backbone]().double().eval()


def adapted(method: str, backbone: str = "vit", **arguments: Any) -> PeftModel:
    """A model whose adapter has random values."""
    model = network(backbone)
    config = OWN[method].config_class(modules_to_save=[], **arguments)
    adapter = get_peft_model(model, config).eval()
    jitter(adapter)
    return adapter


def jitter(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))


def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)


def blocks_of(model: PeftModel) -> list[nn.Module]:
    root = model.get_base_model()
    return [root.get_submodule(site.name) for site in find_sites(root) if site.role == "block"]


def hidden_states(model: PeftModel) -> tuple[Tensor, ...]:
    states: tuple[Tensor, ...] = model(
        pixel_values=images(), output_hidden_states=True
    ).hidden_states
    return states


def passed_on(model: PeftModel) -> list[Tensor]:
    """The input of every block without prompts, and what leaves the last."""
    seen: list[Tensor] = []
    blocks = blocks_of(model)
    handles = [b.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for b in blocks]
    handles.append(blocks[-1].register_forward_hook(lambda _, __, y: seen.append(y)))
    model(pixel_values=images())
    for handle in handles:
        handle.remove()
    return [torch.cat([x[:, :1], x[:, 1 - TOKENS :]], dim=1) for x in seen]


def check(model: PeftModel, *, is_normed: bool = False) -> None:
    """`is_normed`: the model gives its last state after the final norm."""
    found, expected = hidden_states(model), passed_on(model)
    assert len(found) == len(expected) == 4
    for index, (state, tokens) in enumerate(zip(found, expected, strict=True)):
        if index < 3 or not is_normed:
            torch.testing.assert_close(state, tokens)


def test_all_methods_that_wrap_are_here() -> None:
    wrapping = set()
    for method in OWN:
        model = network()
        model = get_peft_model(model, get_method(method).configure(model))
        if any(isinstance(module, WrapperLayer) for module in model.modules()):
            wrapping.add(method)
    assert wrapping == set(METHODS)


@each_method
@pytest.mark.parametrize("backbone", MODELS)
def test_a_recorded_state_is_what_the_next_block_gets(method: str, backbone: str) -> None:
    if method in HEADLESS and backbone != "vit":
        pytest.skip("needs a classifier")
    model = adapted(method, backbone)
    check(model, is_normed=backbone == "vit")
    with model.disable_adapter():
        check(model, is_normed=backbone == "vit")
        plain = hidden_states(model)
    changed = hidden_states(model)
    assert not torch.allclose(plain[2], changed[2])
    check(copy.deepcopy(model), is_normed=backbone == "vit")
    unadapted = network(backbone)
    torch.testing.assert_close(
        plain, unadapted(pixel_values=images(), output_hidden_states=True).hidden_states
    )
    unloaded = model.unload()
    torch.testing.assert_close(
        plain, unloaded(pixel_values=images(), output_hidden_states=True).hidden_states
    )


@each_method
def test_hooks_from_before_the_adapter_record_it_too(method: str) -> None:
    model = network()
    model(pixel_values=images(), output_hidden_states=True)
    model = get_peft_model(model, get_method(method).configure(model, {})).eval()
    jitter(model)
    check(model, is_normed=True)


@pytest.mark.parametrize("method", sorted(set(METHODS) - HEADLESS))
def test_an_adapter_trains_through_feature_maps(method: str) -> None:
    model = adapted(method, "dinov2").train()
    maps = model(images()).feature_maps
    assert [tuple(one.shape) for one in maps] == [(2, 32, 4, 4)] * 3
    maps[-1].square().sum().backward()
    layers = [module for module in model.modules() if isinstance(module, WrapperLayer)]
    for layer in layers:
        for name, parameter in layer.named_parameters():
            if parameter.requires_grad and "base_layer" not in name:
                assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("method", ["adapter_plus", "vpt_deep", "vpt_shallow"])
def test_two_adapters_at_once(method: str) -> None:
    model = adapted(method)
    model.add_adapter("second", get_method(method).configure(network(), {}))
    model.base_model.set_adapter(["default", "second"])
    jitter(model)
    check(model, is_normed=True)


@each_method
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_record_the_same_and_learn_the_same(
    method: str, reentrant: bool
) -> None:
    found = []
    for checkpoints in (False, True):
        model = adapted(method, **({"dropout": 0.0} if method == "adaptformer" else {}))
        if checkpoints:
            root: Any = model.get_base_model()
            names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
            enable = next(getattr(root, name) for name in names if hasattr(root, name))
            enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train()
        states = hidden_states(model)
        sum(state.square().sum() for state in states).backward()  # type: ignore[union-attr]
        found.append((states, [p.grad for p in model.parameters() if p.requires_grad]))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"vpt_shallow"}))
def test_hooks_of_a_block_act_as_those_of_its_wrapper(method: str) -> None:
    """They see, and may replace, arguments, outputs and gradients."""
    outputs, logs = [], []
    for inside in (False, True):
        model, log = adapted(method), []
        layer = next(module for module in model.modules() if isinstance(module, WrapperLayer))
        place = layer.base_layer if inside else layer
        note = log.append
        place.register_forward_pre_hook(lambda _, given, note=note: note(given[0]))
        place.register_forward_pre_hook(lambda _, given: (given[0] * 1.1, *given[1:]))
        place.register_forward_pre_hook(
            lambda _, given, named: ((given[0] + 0.1, *given[1:]), named), with_kwargs=True
        )
        place.register_forward_hook(lambda _, __, y: y * 1.2)
        place.register_forward_hook(lambda _, __, named, y: y + len(named), with_kwargs=True)
        place.register_full_backward_hook(lambda _, gin, gout, note=note: note(gout[0]))
        place.register_full_backward_pre_hook(lambda _, gout: tuple(g * 1.3 for g in gout))
        x = images().requires_grad_()
        logits = model(pixel_values=x).logits
        logits.square().sum().backward()
        outputs.append((logits, x.grad))
        logs.append(log)
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(logs[0], logs[1])


def test_a_replaced_output_keeps_the_prompts() -> None:
    model = adapted("vpt_shallow")
    expected = model(pixel_values=images()).logits
    for layer in blocks_of(model):
        layer.base_layer.register_forward_pre_hook(lambda _, given: (given[0].clone(),))
        layer.base_layer.register_forward_hook(lambda _, __, y: y.clone())
    torch.testing.assert_close(model(pixel_values=images()).logits, expected)


def test_a_hook_that_is_always_called_hears_of_a_failure() -> None:
    model, heard = adapted("adapter_plus"), []
    block = blocks_of(model)[1].base_layer
    block.register_forward_hook(lambda *given: heard.append(given[-1]), always_call=True)
    block.mlp.fc1.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(pixel_values=images())
    assert heard == [None]


@pytest.mark.parametrize("method", ["adapter_plus", "vpt_shallow"])
def test_a_compiled_model_records_the_same(method: str) -> None:
    model = adapted(method)
    with torch.no_grad():
        expected = hidden_states(model)
        compiled: Any = torch.compile(model, backend="eager")
        torch.testing.assert_close(hidden_states(compiled), expected)


@pytest.mark.parametrize("method", ["vpt_deep", "vpt_shallow"])
def test_prompts_of_a_masked_model(method: str) -> None:
    """A mask reaches the patches it is about; prompts are attended to, and stand in the maps."""
    model = adapted(method, num_prompts=3)
    model.add_adapter("second", get_method(method).configure(network(), {"num_prompts": 2}))
    model.base_model.set_adapter(["default", "second"])
    jitter(model)
    model.get_base_model().set_attn_implementation("eager")
    plain = model(pixel_values=images(), output_attentions=True)
    assert [tuple(one.shape) for one in plain.attentions] == [(2, 2, TOKENS + 5, TOKENS + 5)] * 3
    seen = torch.ones(2, TOKENS, dtype=torch.bool)
    for mask in (seen, torch.zeros(2, 1, TOKENS, TOKENS, dtype=torch.float64)):
        masked = model(pixel_values=images(), attention_mask=mask).logits
        torch.testing.assert_close(masked, plain.logits)
    seen[:, 5] = False
    weights = model(pixel_values=images(), attention_mask=seen, output_attentions=True).attentions
    assert all(one[..., 5 + 5].max() == 0 and one[..., 1:6].min() > 0 for one in weights)


@pytest.mark.skipif(
    torch.__version__ < TorchVersion("2.10"),
    reason="torch 2.6 cannot export PEFT's context manager; 2.10 is the oldest that was tried",
)
@each_method
def test_a_transformers_model_is_exported(method: str) -> None:
    """While it is exported, transformers gives every block a mask."""
    model = adapted(method)
    with torch.no_grad():
        exported = torch.export.export(model, (images(),)).module()
        torch.testing.assert_close(exported(images()).logits, model(images()).logits)
