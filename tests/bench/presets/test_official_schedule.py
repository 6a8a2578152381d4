"""The learning rate at every step of a whole run, as each script's scheduler would set it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from vitune.bench.presets import load_preset
from vitune.bench.study.official_schedule import OfficialSchedule
from vitune.bench.study.plan import Task
from vitune.bench.study.recipe import OfficialRecipe
from vitune.bench.suites.suites import FGVC, VTAB1K

STEPS = 4


def timm_cosine(epoch: int, peak: float, start: float, least: float, length: int) -> float:
    """Ten epochs of warm-up that the cosine counts within its length, as timm has it by default."""
    if epoch < 10:
        return start + epoch * (peak - start) / 10
    if epoch >= length:
        return least
    return least + 0.5 * (peak - least) * (1 + math.cos(math.pi * epoch / length))


def late(rates: list[float]) -> list[float]:
    """`step(epoch)` after an epoch: the first rate twice, the last one never."""
    return [rates[0], *rates[:-1]]


def rlrr(peak: float, length: int) -> list[float]:
    return late([timm_cosine(e, peak, 1e-7, 1e-8, length) for e in range(length + 10)])


def restarts(peak: float, first: int, factor: int, epochs: int) -> list[float]:
    rates: list[float] = []
    period = first
    while len(rates) < epochs:
        rates += [peak * (1 + math.cos(math.pi * e / period)) / 2 for e in range(period)]
        period *= factor
    return late(rates[:epochs])


def kept(rates: list[float]) -> list[float]:
    """One rate an epoch, the same at each of its steps."""
    return [rate for rate in rates for _ in range(STEPS)]


def arc() -> list[float]:
    warm, total = 10 * STEPS, 100 * STEPS
    rates = [step / warm for step in range(warm)]
    rates += [
        max(1e-6, 0.5 * (1 + math.cos(math.pi * step / (total - warm))))
        for step in range(total - warm)
    ]
    return rates


def vpt(peak: float) -> list[float]:
    cosine = [0.5 * (1 + math.cos(math.pi * epoch / 90)) for epoch in range(90)]
    return [peak * rate for rate in [*(epoch / 10 for epoch in range(10)), *cosine]]


EXPECTED: dict[tuple[str, str], Callable[[], list[float]]] = {
    ("rlrr-vtab1k", "cifar"): lambda: kept(rlrr(3e-3, 100)),
    ("rlrr-vtab1k", "clevr_dist"): lambda: kept(rlrr(1e-2, 100)),
    ("rlrr-fgvc", "oxford_flowers"): lambda: kept(rlrr(3e-3, 50)),
    ("rlrr-fgvc", "cub"): lambda: kept(restarts(3e-3, 5, 1, 60)),
    ("rlrr-fgvc", "stanford_dogs"): lambda: kept(restarts(1e-4, 5, 1, 60)),
    ("rlrr-fgvc-augreg", "nabirds"): lambda: kept(restarts(5e-4, 10, 2, 110)),
    ("ssf-vtab1k", "svhn"): lambda: kept(
        [timm_cosine(e, 1e-2, 1e-7, 1e-8, 100) for e in range(110)]
    ),
    ("ssf-fgvc", "stanford_cars"): lambda: kept(
        [timm_cosine(e, 2e-2, 1e-7, 1e-8, 100) for e in range(110)]
    ),
    ("pace-vtab1k", "cifar"): lambda: kept(
        late([timm_cosine(e, 1e-3, 1e-6, 1e-5, 300) for e in range(300)])
    ),
    ("pace-fgvc", "nabirds"): lambda: kept(
        late([timm_cosine(e, 5e-4, 1e-6, 1e-5, 100) for e in range(100)])
    ),
    ("fact_tk-vtab1k", "dtd"): lambda: kept(
        late([timm_cosine(e, 1e-3, 1e-6, 1e-5, 100) for e in range(100)])
    ),
    ("arc-vtab1k", "dtd"): lambda: [1e-2 * rate for rate in arc()],
    ("arc-fgvc", "cub"): lambda: [5e-3 * rate for rate in arc()],
    ("vpt_deep-vtab1k", "sun397"): lambda: kept(vpt(12.5)),
    ("vpt_deep-fgvc", "cub"): lambda: kept(vpt(0.1)),
}


@pytest.mark.parametrize(("name", "task"), EXPECTED, ids="-".join)
def test_every_step_of_a_run(name: str, task: str) -> None:
    preset = load_preset(name)
    entries = {"vtab1k": VTAB1K, "fgvc": FGVC}[preset.suite]
    tasks = [Task(name=entry.name, data="d") for entry in entries if entry.name == task]
    study = preset.study(tasks, name=name, protocol="as-published")
    config = study.config(study.variants[0], tasks[0], {}, seed=0, refit=True)
    recipe = OfficialRecipe.make(study.recipe_of(study.variants[0], tasks[0]))
    assert config.lr is not None
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule = OfficialSchedule(
        optimiser,
        recipe,
        steps_per_epoch=STEPS,
        epochs=config.epochs,
        warmup_epochs=config.resolved_warmup_epochs,
        warmup_lr=config.warmup_lr,
        min_lr=config.min_lr,
    )
    rates = []
    for step in range(STEPS * (config.epochs + recipe.cooldown_epochs)):
        schedule.step_update(step)
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx(EXPECTED[name, task](), rel=1e-12, abs=1e-18)


def test_groups_keep_their_own_peaks_and_an_early_schedule_is_forgotten() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 2.0)]
    optimiser = torch.optim.SGD(groups)
    for group in optimiser.param_groups:
        group["initial_lr"], group["lr"] = group["lr"], 1e-7  # as timm's scheduler leaves them
    schedule = OfficialSchedule(
        optimiser, OfficialRecipe(cosine_from="start", rate_per="epoch"), steps_per_epoch=1,
        epochs=4, warmup_epochs=0, warmup_lr=0.0, min_lr=0.0,
    )  # fmt: skip
    seen = []
    for step in range(5):
        schedule.step_update(step)
        seen.append([group["lr"] for group in optimiser.param_groups])
    assert all(second == 2 * first for first, second in seen)
    assert [first for first, _ in seen] == pytest.approx(
        [1.0, *(0.5 + math.cos(math.pi * n / 4) / 2 for n in (1, 2, 3)), 0.0], abs=1e-12
    )


def test_a_warm_up_longer_than_the_run_ends_it() -> None:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = OfficialSchedule(
        optimiser, OfficialRecipe(), steps_per_epoch=1, epochs=3, warmup_epochs=10,
        warmup_lr=0.0, min_lr=0.25,
    )  # fmt: skip
    assert [schedule.rate(step, 1.0) for step in (0, 2, 9, 10, 12)] == [0.0, 0.2, 0.9, 0.25, 0.25]
