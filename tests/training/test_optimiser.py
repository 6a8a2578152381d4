"""Weight decay goes by what a parameter is; warm-up and cosine go by step."""

from __future__ import annotations

import itertools
import math

import pytest
import timm
import torch
from peft import get_peft_model
from torch import nn

import vitune
from vitune.training.averaging import Averager
from vitune.training.optimiser import new_optimiser, new_schedule, parameter_groups


def test_scales_of_linears_and_the_head_weight_decay_and_nothing_else_does() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=5
    )
    model = get_peft_model(model, vitune.RLRRConfig())
    decayed, exempt = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kinds = {names[id(p)].split(".")[-2] for p in decayed["params"]}
    assert kinds == {"vitune_scale_out", "vitune_scale_in", "default"}
    assert [names[id(p)] for p in decayed["params"] if "default." in names[id(p)]] == [
        "base_model.model.head.modules_to_save.default.weight"
    ]
    kinds = {names[id(p)].split(".")[-2] for p in exempt["params"]}
    assert kinds == {"vitune_scale", "vitune_shift", "default"}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(decayed["params"]) + len(exempt["params"]) == len(trained)


def test_the_schedule_warms_up_and_ends_at_the_minimum() -> None:
    optimiser = new_optimiser(nn.Linear(2, 2), lr=1.0, weight_decay=0.0)
    schedule = new_schedule(optimiser, num_steps=100, warmup_steps=10, min_lr=1e-8)
    rates = []
    for step in range(101):
        schedule.step_update(step)
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-7)
    assert rates[10] == pytest.approx(1.0)
    assert rates[5] == pytest.approx(0.5, abs=1e-6)
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)), abs=1e-6)
    assert rates[100] == pytest.approx(1e-8)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_averages_follow_the_parameters_and_step_aside() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    averager = Averager({"p": parameter}, decay=0.9)
    with torch.no_grad():
        parameter.fill_(1.0)
    averager.update()
    expected = 1 - 2 / 11
    assert torch.allclose(averager.averages["p"], torch.full((3,), expected))
    with averager.applied():
        assert torch.allclose(parameter, torch.full((3,), expected))
    assert torch.equal(parameter.detach(), torch.ones(3))


def test_averages_without_a_ramp_have_one_decay_from_the_first_step() -> None:
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    averager = Averager({"p": parameter}, decay=0.9998, ramp=False)
    expected = torch.zeros(4, dtype=torch.float64)
    for step in range(50):
        with torch.no_grad():
            parameter.copy_(torch.arange(4.0) * step)
        averager.update()
        expected = 0.9998 * expected + 0.0002 * parameter.detach()
    torch.testing.assert_close(averager.averages["p"], expected, rtol=1e-12, atol=0)


def test_the_warm_up_starts_where_it_is_told() -> None:
    optimiser = new_optimiser(nn.Linear(2, 2), lr=1.0, weight_decay=0.0)
    schedule = new_schedule(optimiser, num_steps=10, warmup_steps=5, min_lr=0.0, warmup_lr=0.5)
    schedule.step_update(0)
    assert optimiser.param_groups[0]["lr"] == 0.5
    schedule.step_update(2)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.7)
