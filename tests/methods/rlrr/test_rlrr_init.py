"""What `init` means at step 0, and that the scales can leave it."""

from __future__ import annotations

import math

import pytest
import torch
from peft import get_peft_model
from rlrr_models import (
    BACKBONES,
    images,
    outputs,
    paper_strength,
    plain,
    random_backbone,
    strength,
)

from vitune.errors import VituneError
from vitune.methods import MethodLayer, RLRRConfig
from vitune.methods.rlrr.init import new_scales
from vitune.ops import rescaled_weight

NUM_OUT, NUM_IN = 384, 256
FULL, SIDE = paper_strength(NUM_IN), math.sqrt(2 / NUM_IN)
RANDOM = ("paper", "normal", "uniform", "constant")

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT reads it
)


def changed_and_weight(**options: object) -> tuple[torch.Tensor, torch.Tensor]:
    config = RLRRConfig(**options)
    weight = torch.randn(NUM_OUT, NUM_IN)
    scales = new_scales(config, NUM_OUT, NUM_IN, 1)
    scale_out = scales.get("scale_out", torch.ones(NUM_OUT, 1))
    scale_in = scales.get("scale_in", torch.ones(1, 1, NUM_IN))
    if not config.hadamard:
        return weight + scale_out @ scale_in[0], weight
    return rescaled_weight(weight, scale_out, scale_in, residual=config.residual), weight


@pytest.mark.parametrize(
    ("init", "rank"),
    [*((init, 1) for init in RANDOM), ("paper", 4), ("normal", 4), ("uniform", 4)],
)
def test_both_sides_start_with_the_papers_strength(init, rank):
    assert strength(*changed_and_weight(init=init, rank=rank)) == pytest.approx(FULL, rel=0.15)


@pytest.mark.parametrize("init", RANDOM)
@pytest.mark.parametrize("sides", ["in", "out"])
def test_one_side_starts_with_the_strength_of_the_input_scale(init, sides):
    assert strength(*changed_and_weight(init=init, sides=sides)) == pytest.approx(SIDE, rel=0.15)


def test_paper_scales_lie_in_the_papers_ranges():
    scales = new_scales(RLRRConfig(), NUM_OUT, NUM_IN, 3)
    assert scales["scale_in"].shape == (3, 1, NUM_IN)
    assert 0.95 < scales["scale_in"].abs().max() / math.sqrt(6 / NUM_IN) <= 1
    assert scales["scale_out"].shape == (NUM_OUT, 1)
    assert 0.95 < scales["scale_out"].abs().max() / math.sqrt(6) <= 1


@pytest.mark.parametrize(
    ("init", "expected"), [("paper", 0.02 * math.sqrt(2)), ("normal", FULL), ("uniform", FULL)]
)
def test_without_the_residual_scales_start_around_one(init, expected):
    scales = new_scales(RLRRConfig(init=init, residual=False), NUM_OUT, NUM_IN, 1)
    assert all(scale.mean() == pytest.approx(1, abs=0.03) for scale in scales.values())
    result = strength(*changed_and_weight(init=init, residual=False))
    assert result == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("rank", [2, 3])
def test_without_the_residual_further_components_start_as_with_it(rank):
    result = strength(*changed_and_weight(residual=False, rank=rank))
    further = FULL * math.sqrt((rank - 1) / rank)
    assert result == pytest.approx(math.hypot(further, 0.02 * math.sqrt(2)), rel=0.2)


@pytest.mark.parametrize("init", [*RANDOM, "identity"])
def test_without_w_every_init_starts_at_w(init):
    changed, weight = changed_and_weight(init=init, hadamard=False)
    assert torch.equal(changed, weight)
    scale_in = new_scales(RLRRConfig(init=init, hadamard=False), NUM_OUT, NUM_IN, 1)["scale_in"]
    assert float(scale_in.square().mean().sqrt()) == pytest.approx(SIDE, rel=0.1)


IDENTITIES = [
    {},
    {"rank": 3},
    {"sides": "in"},
    {"sides": "out"},
    {"hadamard": False},
    {"residual": False},
    {"residual": False, "rank": 3},
    {"residual": False, "sides": "out"},
    {"roles": ("q", "v", "norms")},
]


def assert_pretrained(adapted, x, expected):
    torch.testing.assert_close(outputs(adapted, x), expected, rtol=1e-6, atol=1e-6)
    for layer in adapted.modules():
        if isinstance(layer, MethodLayer):
            base = layer.base_tensors()
            for key, value in layer.effective_tensors().items():
                if base[key] is None:
                    assert value is None or not value.any(), layer.site.name
                else:
                    assert torch.equal(value, base[key]), layer.site.name


@pytest.mark.parametrize("options", IDENTITIES, ids=str)
@pytest.mark.parametrize("name", ["timm_vit", "hf_vit"])
def test_identity_starts_at_the_pretrained_function_and_moves_every_scale(name, options):
    base = random_backbone(name)
    x = images()
    expected = outputs(base, x)
    config = RLRRConfig(init="identity", **options)
    assert config.identity_at_init
    adapted = get_peft_model(base, config).eval()
    assert_pretrained(adapted, x, expected)
    assert_all_scales_move(adapted, x)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in ("timm_vit", "hf_vit")])
def test_identity_on_every_backbone(name):
    base = random_backbone(name)
    x = images()
    expected = outputs(base, x)
    adapted = get_peft_model(base, RLRRConfig(init="identity")).eval()
    assert_pretrained(adapted, x, expected)
    assert_all_scales_move(adapted, x)


def assert_all_scales_move(adapted, x):
    """Every scale has a gradient at the first step or at the second."""
    scales = {
        (layer.site.name, name): getattr(layer, name)["default"]
        for layer in adapted.modules()
        if isinstance(layer, MethodLayer)
        for name in ("scale_out", "scale_in", "scale")
        if "default" in getattr(layer, name, {})
    }
    optimiser = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    moved: set[object] = set()
    for _ in range(2):
        optimiser.zero_grad()
        plain(adapted(x)).square().sum().backward()
        optimiser.step()
        moved |= {key for key, scale in scales.items() if scale.grad.abs().sum() > 0}
    assert moved == set(scales) and moved


def test_a_one_sided_zero_is_an_identity_that_moves():
    config = RLRRConfig(init="zero", sides="in")
    assert config.identity_at_init
    adapted = get_peft_model(random_backbone(), config)
    assert_all_scales_move(adapted, images())


def test_zero_on_both_sides_is_stationary_for_the_scales():
    adapted = get_peft_model(random_backbone(), RLRRConfig(init="zero", allow_stationary=True))
    optimiser = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        plain(adapted(images())).square().sum().backward()
        optimiser.step()
    for layer in adapted.modules():
        if isinstance(layer, MethodLayer) and hasattr(layer, "scale_out"):
            assert not layer.scale_out["default"].any() and not layer.scale_in["default"].any()
            if "k" not in layer.site.role:
                assert layer.shift["default"].any()


@pytest.mark.parametrize("options", [{}, {"residual": False, "sides": "in"}, {"hadamard": False}])
def test_zero_that_cannot_move_is_refused_unless_allowed(options):
    with pytest.raises(VituneError, match="no scale would ever get a gradient"):
        RLRRConfig(init="zero", **options)
    assert RLRRConfig(init="zero", allow_stationary=True, **options).init == "zero"


def test_the_norm_parts_start_as_init_says():
    for init, spread in (("paper", 0.02), ("normal", 0.02), ("identity", 0.0)):
        adapted = get_peft_model(random_backbone(embed_dim=256), RLRRConfig(init=init))
        scale = adapted.base_model.model.norm.scale["default"].detach()
        assert float(scale.std()) == pytest.approx(spread, rel=0.2)
        assert float(scale.mean()) == pytest.approx(1, abs=0.005)
