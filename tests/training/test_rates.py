"""The rate rule: its reference, its exponents, what it reads from a backbone, when it holds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from vitune.backbones import BUNDLED, load_backbone
from vitune.methods import get_method
from vitune.training import TrainConfig, fit
from vitune.training.probing import Probe
from vitune.training.rates import (
    FEWEST_STEPS,
    MOST_DEMAND_WHEN_SHORT,
    Shape,
    demand_of,
    falls_short,
    num_steps,
    plain_rate,
    rate_from_zero,
    rate_of,
    shape_of,
)
from vitune.training.starting import with_start

VIT_B = Shape(768, 12, 300, 32)


def test_the_reference_run_has_the_method_s_own_rate() -> None:
    assert rate_of(1e-3, VIT_B) == 1e-3
    assert rate_of(1e-4, VIT_B) == 1e-4


@pytest.mark.parametrize(
    ("changed", "factor"),
    [
        (Shape(192, 12, 300, 32), 2.0),
        (Shape(768, 3, 300, 32), 2.0),
        (Shape(768, 12, 1200, 32), 0.5),
        (Shape(768, 12, 300, 128), 2.0),
        (Shape(768, 12, 20, 32), math.sqrt(3)),
    ],
)
def test_every_quantity_enters_by_its_square_root(changed: Shape, factor: float) -> None:
    assert rate_of(1e-3, changed) == pytest.approx(1e-3 * factor, rel=0.05)


def test_networks_smaller_than_the_bundled_one_get_its_rate() -> None:
    bundled = rate_of(1e-3, Shape(128, 6, 300, 32))
    assert bundled == rate_of(1e-3, Shape(64, 6, 300, 32)) == rate_of(1e-3, Shape(64, 3, 300, 32))
    assert rate_of(1e-3, Shape(160, 6, 300, 32)) < bundled


def test_a_weak_penalty_asks_for_a_higher_rate_within_bounds() -> None:
    assert demand_of(None, 800) == demand_of(0.1, 800) == demand_of(1.0, 400) == 1.0
    assert demand_of(0.03, 800) == pytest.approx(50 / 24)
    assert demand_of(1e-3, 800) == 10.0 and demand_of(1e-3, 800, most=2.0) == 2.0


def test_short_features_are_told_by_the_summed_penalty() -> None:
    assert falls_short(0.01, 800) and not falls_short(0.1, 800) and not falls_short(None, 800)
    assert falls_short(0.01, 2000) and not falls_short(0.01, 20_000)
    assert plain_rate(0.03, 250) == 0.03 and plain_rate(0.03, 1200) == 0.015


def test_short_runs_start_at_the_probe_unless_a_rate_is_given() -> None:
    """Three epochs of 25 steps are fewer than 100; four are not."""
    model = load_backbone(BUNDLED, pretrained=False).model
    probe = Probe.of_nothing()
    probe = replace(probe, head=replace(probe.head, chosen={"penalty_1se": 0.003}))
    assert falls_short(0.003, 800)

    def started(longest: int | None = None, **settings: object) -> TrainConfig:
        config = TrainConfig.make({"data": "x", **settings})
        return with_start(config, model, 800, 1, probe, longest=longest)

    short, long, given = started(epochs=3), started(epochs=4), started(epochs=3, lr=0.02)
    assert num_steps(short, 800, 1) < FEWEST_STEPS == num_steps(long, 800, 1)
    dropped = started(epochs=3, drop_last=True)
    assert (num_steps(short, 63, 1), num_steps(dropped, 63, 1)) == (6, 3)
    assert (short.start, long.start, given.start) == ("probe", "plain", "plain")
    doubled = rate_of(1e-3, Shape(128, 6, 75, 32)) * MOST_DEMAND_WHEN_SHORT
    assert short.lr == pytest.approx(doubled, rel=0.02) and short.choose_best
    assert long.lr == get_method("rlrr").default_lr(BUNDLED) and given.lr == 0.02
    assert started(epochs=3, longest=30).start == "plain"  # the first part of a longer run


def test_width_and_depth_are_read_from_the_network() -> None:
    backbone = load_backbone("vitune/vit_micro_patch4_32")
    assert shape_of(backbone.model, 7, 8) == Shape(128, 6, 7, 8)
    small = load_backbone("vit_small_patch16_224", pretrained=False)
    assert shape_of(small.model, 7, 8) == Shape(384, 12, 7, 8)
    swin = load_backbone("swin_tiny_patch4_window7_224", pretrained=False)
    assert shape_of(swin.model, 7, 8) == Shape(768, 12, 7, 8)


def test_a_method_without_a_recorded_rate_takes_the_rule_s_where_features_fall_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vitune.training.rates.FALLS_SHORT", 1e9)
    monkeypatch.setattr("vitune.training.rates.FEWEST_STEPS", 0)
    quick = {"data": "demo:digits?train=40", "epochs": 1, "batch_size": 16, "image_size": 16}
    quick["method"] = "met"
    found = fit(TrainConfig.make(quick)).summary
    assert found.head_lr is None and found.probe is not None
    demand = demand_of(found.probe.chosen["penalty_1se"], 32)
    expected = rate_of(1e-3, Shape(128, 6, 2, 16)) * math.sqrt(demand)
    assert found.lr == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("name", "factor"), [("vit_small", math.sqrt(1 / 3)), ("vit_tiny", 0.816)])
def test_from_zero_other_backbones_take_the_rates_recorded_on_the_bundled_one(
    name: str, factor: float
) -> None:
    name = f"{name}_patch16_224"
    model = load_backbone(name, pretrained=False).model
    for method in ("rlrr", "lora", "full"):
        config = TrainConfig.make({"backbone": name, "method": method, "data": "x", "epochs": 1})
        expected = factor * get_method(method).default_lr(BUNDLED)
        found = rate_from_zero(config, model, 800, 1, Probe.of_nothing())
        assert found == pytest.approx(expected, rel=0.03)


def test_a_given_rate_and_a_plain_start_are_left_alone() -> None:
    quick = {
        "data": "demo:digits?train=40", "epochs": 1, "batch_size": 16, "start": "probe",
        "image_size": 16,
    }  # fmt: skip
    by_rule = fit(TrainConfig.make(quick)).summary
    chosen = by_rule.probe.chosen["penalty_1se"]
    expected = rate_of(1e-3, Shape(128, 6, 2, 16)) * demand_of(chosen, 32, MOST_DEMAND_WHEN_SHORT)
    assert by_rule.lr == pytest.approx(expected, rel=0.05)
    assert by_rule.head_lr == pytest.approx(by_rule.lr / 10)
    given = fit(TrainConfig.make({**quick, "lr": 2e-3, "head_lr": 7e-4})).summary
    assert (given.lr, given.head_lr) == (2e-3, 7e-4)
    plain = fit(TrainConfig.make({**quick, "start": "plain"})).summary
    assert plain.lr == get_method("rlrr").default_lr("vitune/vit_micro_patch4_32")
    assert plain.head_lr is None
