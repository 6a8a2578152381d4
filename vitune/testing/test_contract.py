"""What every method must satisfy on every kind of network; the cases come from the registry."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from vitune.backbones import find_sites, head_name, logits_of, token_layout
from vitune.errors import AdapterError, BackboneError
from vitune.methods import METHODS, Method, MethodLayer, method_penalty
from vitune.testing.cases import TESTED, config_of, move
from vitune.testing.tiny_backbones import BUILDERS, NUM_CLASSES, build, images, run
from vitune.training.last_block import class_tail, lean_training

CASES = [(method, backbone) for method in TESTED for backbone in BUILDERS]

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated and will be removed in v6:FutureWarning"
)
each_case = pytest.mark.parametrize(
    ("method", "backbone"), CASES, ids=[f"{method}-{backbone}" for method, backbone in CASES]
)


class RefusedError(Exception):
    """The method does not support the network, and said so correctly."""


def attach(method: str, backbone: str) -> PeftModel:
    """The network with the method's adapter, eval mode, or `RefusedError`."""
    model = build(backbone)
    chosen: Method = METHODS[method]
    before = run(model, images(backbone))
    try:
        torch.manual_seed(3)
        peft_model = get_peft_model(model, chosen.configure(model))
    except BackboneError as error:
        assert "got" in str(error) and "expected" in str(error)
        assert torch.equal(run(model, images(backbone)), before)
        assert not any(isinstance(module, MethodLayer) for module in model.modules())
        raise RefusedError from error
    return peft_model.eval()


def attached(method: str, backbone: str) -> PeftModel:
    try:
        return attach(method, backbone)
    except RefusedError as refused:
        pytest.skip(f"refused as it should: {refused.__cause__}")


def adapter_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """Trainable parameters outside the head."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "modules_to_save" not in name
    }


def tolerance(model: PeftModel) -> float:
    layers = [module for module in model.modules() if isinstance(module, MethodLayer)]
    return max((layer.merge_tolerance for layer in layers), default=0.0)


def assert_close(actual: Tensor, expected: Tensor, rate: float) -> None:
    scale = max(1.0, expected.abs().max().item())
    difference = (actual - expected).abs().max().item()
    assert difference <= rate * scale, (difference, rate)


@pytest.mark.parametrize("method", TESTED)
def test_acts_on_a_plain_vision_transformer(method: str) -> None:
    attach(method, "vit")


@each_case
def test_starts_as_declared(method: str, backbone: str) -> None:
    expected = run(build(backbone), images(backbone))
    model = attached(method, backbone)
    actual = run(model, images(backbone))
    if model.peft_config["default"].identity_at_init:
        assert_close(actual, expected, tolerance(model))
    else:
        assert not torch.allclose(actual, expected, atol=1e-6)


@each_case
def test_only_adapter_and_head_train_and_all_of_them_move(method: str, backbone: str) -> None:
    model = attached(method, backbone)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    head = head_name(model)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    labels = torch.tensor([0, 1, 2])
    model.train()
    for _ in range(3):
        loss = nn.functional.cross_entropy(logits_of(model(images(backbone))), labels)
        own = method_penalty(model, 0.0, labels)
        loss = loss if own is None else loss + own
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    shared = {f"base_model.shared_state.{name}" for name, _ in _shared(model)}
    in_layers = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, MethodLayer)
        for name, _ in module.named_parameters(remove_duplicate=False)
        if name.partition(".")[0].removeprefix("vitune_") in module.adapter_layer_names
    }
    # No gradient reaches what only shifts all keys alike, nor, where the head reads the class
    # token, what only changes the patches after the last attention.
    last = max(site.block for site in find_sites(model) if site.block is not None)
    reads_patches = token_layout(model.get_base_model()).pooling != "token"
    unseen = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, MethodLayer)
        and (
            module.site.role == "k"
            or (module.patches_only and module.site.block == last and not reads_patches)
        )
        for name, value in module.named_parameters()
        if value.grad is not None and value.grad.abs().max() < 1e-6
    }
    for name, value in model.named_parameters():
        has_moved = not torch.equal(value, before[name])
        assert has_moved == (name in trained) or name in unseen, name
        assert (value.grad is not None) == (name in trained), name
        is_head = head is not None and "modules_to_save.default" in name
        assert (name in trained) == (name in shared | in_layers or is_head), name


def _shared(model: PeftModel) -> list[tuple[str, nn.Parameter]]:
    return list(model.base_model.shared_state.named_parameters())


@each_case
def test_reloaded_merged_and_unmerged_agree(method: str, backbone: str, tmp_path: Path) -> None:
    model = attached(method, backbone)
    move(model)
    x = images(backbone)
    expected = run(model, x)
    model.save_pretrained(str(tmp_path))
    torch.manual_seed(99)
    reloaded = PeftModel.from_pretrained(build(backbone), str(tmp_path)).eval()
    assert torch.equal(run(reloaded, x), expected)
    if not METHODS[method].config_class.mergeable:
        for merge in (model.merge_and_unload, model.merge_adapter):
            with pytest.raises(AdapterError, match=r"merge: got .* expected one that merges"):
                merge()
        assert torch.equal(run(model, x), expected)
        return
    base = build(backbone).state_dict()
    reloaded.merge_adapter()
    assert_close(run(reloaded, x), expected, tolerance(model))
    with reloaded.disable_adapter():
        disabled = run(reloaded, x)
    reloaded.unmerge_adapter()
    assert torch.equal(run(reloaded, x), expected)
    merged = reloaded.merge_and_unload(safe_merge=True)
    assert_close(run(merged, x), expected, tolerance(model))
    assert set(merged.state_dict()) >= set(base)
    assert not any(isinstance(module, MethodLayer) for module in merged.modules())
    assert torch.equal(disabled, run(build(backbone), x))


@each_case
def test_unload_gives_the_base_back(method: str, backbone: str) -> None:
    x = images(backbone)
    expected = run(build(backbone), x)
    model = attached(method, backbone)
    move(model)
    with model.disable_adapter():
        assert torch.equal(run(model, x), expected)
    assert not torch.allclose(run(model, x), expected, atol=1e-5)
    head, unloaded, base = head_name(model.get_base_model()), model.unload(), build(backbone)
    for name, value in base.state_dict().items():
        assert name.startswith(f"{head}.") or torch.equal(unloaded.state_dict()[name], value)


@each_case
def test_two_adapters_do_not_leak(method: str, backbone: str) -> None:
    x = images(backbone)
    model = attached(method, backbone)
    move(model, seed=5)
    first = run(model, x)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    torch.manual_seed(6)
    model.add_adapter("second", METHODS[method].configure(build(backbone)))
    assert {name for name, value in model.named_parameters() if value.requires_grad} == trained
    assert torch.equal(run(model, x), first)
    model.set_adapter("second")
    active = {name for name, value in model.named_parameters() if value.requires_grad}
    assert active and not active & trained
    move(model, seed=7)
    second = run(model, x)
    assert not torch.allclose(second, first, atol=1e-5)
    model.set_adapter("default")
    assert torch.equal(run(model, x), first)
    model.set_adapter("second")
    model.delete_adapter("default")
    assert torch.equal(run(model, x), second)
    assert not any("default" in key for key in model.state_dict())


@each_case
def test_adapters_compose(method: str, backbone: str) -> None:
    """`adapt` starts from the tensors it is given, not from the base layer's own."""
    if not adapter_parameters(attached(method, backbone)):
        pytest.skip("only the head trains")
    x, config = images(backbone), config_of(method, modules_to_save=[])
    model = get_peft_model(build(backbone), config).eval()
    move(model, seed=5)
    model.add_adapter("second", config)
    model.set_adapter("second")
    move(model, seed=7)
    model.base_model.set_adapter(["default", "second"])
    both = run(model, x)
    for alone in ("default", "second"):
        model.base_model.set_adapter(alone)
        assert not torch.allclose(run(model, x), both, atol=1e-6), alone
    if METHODS[method].mergeable:
        model.base_model.set_adapter(["default", "second"])
        model.merge_adapter()
        assert_close(run(model, x), both, 2 * tolerance(model))
        model.unmerge_adapter()
        assert torch.equal(run(model, x), both)


@each_case
def test_saved_state_is_exactly_what_trains(method: str, backbone: str) -> None:
    model = attached(method, backbone)
    state = get_peft_model_state_dict(model)
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(t.numel() for t in state.values() if t.is_floating_point()) == trained
    fresh = build(backbone)
    config = METHODS[method].configure(fresh)
    expected = config.num_parameters(fresh, config.choose(find_sites(fresh)))
    assert sum(p.numel() for p in adapter_parameters(model).values()) == expected


@each_case
def test_copies_are_independent_and_keep_sharing(method: str, backbone: str) -> None:
    x = images(backbone)
    model = attached(method, backbone)
    move(model)
    expected = run(model, x)
    twin = copy.deepcopy(model)
    assert torch.equal(run(twin, x), expected)
    move(twin, seed=8)
    assert not torch.allclose(run(twin, x), expected, atol=1e-5)
    assert torch.equal(run(model, x), expected)
    for either in (model, twin):
        states = either.base_model.shared_state
        for layer in either.modules():
            if isinstance(layer, MethodLayer) and layer.shared["default"] is not None:
                assert layer.shared["default"] is states["default"]


@each_case
def test_moves_with_the_model_and_takes_bf16(method: str, backbone: str) -> None:
    x = images(backbone)
    model = attached(method, backbone)
    move(model)
    expected = run(model, x)
    assert_close(run(copy.deepcopy(model).double(), x.double()).float(), expected, 1e-4)
    half = build(backbone).bfloat16()
    torch.manual_seed(3)
    half = get_peft_model(half, METHODS[method].configure(half)).eval()
    move(half)
    assert all(p.dtype == torch.float32 for p in adapter_parameters(half).values())
    logits = logits_of(half(x.bfloat16()))
    assert logits.shape == (3, NUM_CLASSES) and torch.isfinite(logits).all()
    assert_close(logits.float(), expected, 0.15)
    logits.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in half.parameters() if p.grad is not None)


@each_case
def test_lean_step_gives_the_same_gradients(method: str, backbone: str) -> None:
    plain = attached(method, backbone).double()
    move(plain)
    lean = copy.deepcopy(plain)
    x, labels = images(backbone).double(), torch.tensor([0, 1, 2])
    gradients = []
    for model, circumstances in (
        (plain, nullcontext()),
        (lean, lean_training(class_tail(lean))),
    ):
        with circumstances:  # in evaluation mode: a dropout mask of one token is another mask
            nn.functional.cross_entropy(logits_of(model.eval()(x)), labels).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        if gradient is not None and gradient.abs().max() > 1e-12:
            torch.testing.assert_close(other, gradient, rtol=1e-8, atol=1e-11)
        else:
            assert other is None or other.abs().max() <= 1e-12, name


@pytest.mark.parametrize("method", TESTED)
def test_recomputed_activations_give_the_same_gradients(method: str) -> None:
    gradients = []
    for is_recomputed in (False, True):
        model = attached(method, "vit")
        move(model)
        model.get_base_model().set_grad_checkpointing(is_recomputed)
        torch.manual_seed(9)
        model.train()
        logits_of(model(images("vit"))).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)
