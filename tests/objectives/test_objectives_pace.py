"""PACE and cross-entropy: formulas, variants, shared masks, and the methods that cannot be used."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.errors import TrainingError, VituneError
from vitune.methods import OWN, get_method, method_penalty, noise_plan
from vitune.objectives import NoisePlan, Pace, Step, new_objective
from vitune.objectives.pace import _factors

LABELS = torch.tensor([0, 1, 2, 0])


def tiny(**options: object) -> nn.Module:
    torch.manual_seed(0)
    settings = {
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 2,
        "mlp_ratio": 2,
        "num_classes": 3,
    }
    return VisionTransformer(**{**settings, **options})


def adapted(name: str, **options: object) -> nn.Module:
    model = tiny(**options)
    peft_model = get_peft_model(model, get_method(name).configure(model))
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return peft_model.train()


def images() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def plan(num_blocks: int = 12, starts_at_first: bool = False) -> NoisePlan:
    return NoisePlan(num_blocks, starts_at_first, None)  # type: ignore[arg-type]


def test_noise_falls_linearly_with_depth() -> None:
    pace = Pace(pace_sigma=1.2)
    pace.prepare(plan())
    expected = [0.0] + [1.2 * (13 - position) / 12 for position in range(1, 13)]
    assert [pace.sigma(position) for position in range(13)] == pytest.approx(expected)
    pace.prepare(plan(4, starts_at_first=True))
    falling = [1.2 * k / 5 for k in (5, 4, 3, 2, 1)]
    assert [pace.sigma(position) for position in range(5)] == pytest.approx(falling)


def test_one_noise_vector_an_image_for_all_its_windows_and_tokens() -> None:
    delta = torch.ones(6, 5, 7)
    factors = _factors(delta, 3, 0.5, torch.Generator().manual_seed(0))
    assert factors.shape == (6, 1, 7)
    assert torch.equal(factors[0], factors[1]) and not torch.equal(factors[1], factors[2])
    many = _factors(torch.ones(4000, 1, 8), 4000, 0.5, torch.Generator().manual_seed(0))
    assert many.mean().item() == pytest.approx(1, abs=0.02)
    assert many.std().item() == pytest.approx(0.5, abs=0.02)


def test_without_noise_both_passes_share_every_mask() -> None:
    model = adapted("rlrr", drop_path_rate=0.5, proj_drop_rate=0.3)
    pace = Pace(pace_sigma=0.0, pace_lambda=1.0)
    pace.prepare(noise_plan(model))
    assert pace(model, images(), LABELS, Step())["consistency"].item() == 0
    with torch.no_grad():
        assert not torch.equal(model(images()), model(images()))


def test_without_noise_and_masks_the_loss_is_cross_entropy() -> None:
    model = adapted("rlrr")
    pace = Pace(pace_sigma=0.0)
    pace.prepare(noise_plan(model))
    losses = pace(model, images(), LABELS, Step())
    torch.testing.assert_close(losses["cross_entropy"], F.cross_entropy(model(images()), LABELS))
    again = new_objective("cross_entropy")(model, images(), LABELS, Step())
    torch.testing.assert_close(losses["cross_entropy"], again["cross_entropy"])


@pytest.mark.parametrize("name", ["hta", "lora", "lora_mul_vpt_add", "adaptformer", "houlsby"])
def test_a_change_that_is_multiplied_by_zero_is_gone(name: str) -> None:
    model = adapted(name).eval()
    with noise_plan(model).applied(lambda block, delta: delta * 0):
        silenced = model(images())
    for layer in model.modules():
        if hasattr(layer, "base_layer"):
            layer._disable_adapters = True
    torch.testing.assert_close(silenced, model(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OWN)
def test_each_method_trains_under_pace_or_says_that_it_cannot(name: str) -> None:
    model = adapted(name)
    if not OWN[name].config_class.exposes_delta:
        with pytest.raises(VituneError, match=r"objective 'pace': got method .*expected one whose"):
            noise_plan(model)
        return
    pace = Pace(pace_lambda=1.0)
    pace.prepare(noise_plan(model))
    losses = pace(model, images(), LABELS, Step())
    assert losses["consistency"].item() > 0
    losses["consistency"].backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert any(gradient is not None and gradient.any() for gradient in gradients)
    model.eval()
    assert torch.equal(model(images()), model(images()))


def test_passes_steps_and_resumed_steps_draw_what_they_should() -> None:
    model = adapted("rlrr")
    pace = Pace()
    pace.prepare(noise_plan(model))
    values = []
    for number in (0, 1, 0):
        torch.manual_seed(7)
        values.append(pace(model, images(), LABELS, Step(number=number))["consistency"].item())
    assert values[0] == values[2] != values[1]


def test_fast_variant_has_no_target_before_the_second_epoch() -> None:
    model = adapted("rlrr")
    pace = Pace(variant="fast", pace_lambda=1.0)
    assert pace.needs_indices
    pace.prepare(noise_plan(model))
    step = Step(indices=torch.tensor([4, 7, 1, 0]))
    assert pace(model, images(), LABELS, step)["consistency"].item() == 0
    later = Step(number=1, indices=step.indices)
    assert pace(model, images(), LABELS, later)["consistency"].item() > 0
    with pytest.raises(TrainingError, match="got a batch without image indices"):
        pace(model, images(), LABELS, Step())


def test_lazy_variant_uses_half_of_the_batch_on_every_nth_step() -> None:
    model = adapted("rlrr")
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    pace = Pace(variant="lazy_half", interval=3)
    pace.prepare(noise_plan(model))
    for number in range(4):
        losses = pace(model, images(), LABELS, Step(number=number))
        assert ("consistency" in losses) == (number == 2)
    assert sizes == [4, 4, 2, 2, 4]


def test_consistency_sums_over_classes_or_takes_their_mean() -> None:
    first, second = torch.randn(4, 5), torch.randn(4, 5)
    summed = Pace(pace_lambda=0.3)._disagreement(first, second)
    torch.testing.assert_close(summed, 0.3 * (first - second).square().sum() / 4)
    mean = Pace(pace_lambda=0.3, mean_over_classes=True)._disagreement(first, second)
    torch.testing.assert_close(mean, summed / 5)


def test_recomputed_activations_are_refused() -> None:
    model = adapted("rlrr")
    model.get_base_model().set_grad_checkpointing(True)
    with pytest.raises(VituneError, match="got recomputed activations"):
        noise_plan(model)


def test_penalty_of_the_method_is_one_of_the_losses() -> None:
    model = tiny()
    config = get_method("moppa").configure(model, {"entropy_scale": 0.1})
    peft_model = get_peft_model(model, config)
    step = Step(penalty=lambda progress, labels: method_penalty(peft_model, progress, labels))
    losses = new_objective("cross_entropy")(peft_model, images(), LABELS, step)
    assert losses["penalty"].item() < 0
    assert method_penalty(peft_model, 0.6) is None
    assert method_penalty(get_peft_model(tiny(), LoraConfig(target_modules=["qkv"])), 0.0) is None


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("pase", {}, "objective: got 'pase'.*Did you mean pace"),
        ("pace", {"lambda": 1}, "--objective-arg: got 'lambda'.*Did you mean pace_lambda"),
        ("pace", {"pace_lambda": -1}, "pace_lambda: got -1, expected a number at least 0"),
        ("pace", {"interval": 1}, "interval: got 1, expected a number at least 2"),
        ("pace", {"variant": "half"}, "variant: got 'half', expected one of"),
        ("cross_entropy", {"label_smoothing": 1.0}, r"label_smoothing: got 1.0, .* in \[0"),
    ],
)
def test_wrong_settings(name: str, arguments: dict[str, object], match: str) -> None:
    with pytest.raises(VituneError, match=match):
        new_objective(name, arguments)


def test_pace_needs_a_plan() -> None:
    with pytest.raises(TrainingError, match="got no noise plan"):
        Pace().prepare(None)
    with pytest.raises(TrainingError, match="got no noise plan"):
        Pace()(nn.Identity(), images(), LABELS, Step())
