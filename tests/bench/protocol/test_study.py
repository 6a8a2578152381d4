"""What a study accepts, and how settings of several sources are put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitune.bench.comparing import compare, comparison_study
from vitune.bench.study.execution import InProcess
from vitune.bench.study.plan import Study, Variant, grid_of
from vitune.bench.study.workbench import Workbench
from vitune.errors import VituneError

Make = Callable[..., Study]


def test_a_grid_has_every_combination() -> None:
    assert grid_of(lr=[1, 2], weight_decay=[0, 3]) == (
        {"lr": 1, "weight_decay": 0},
        {"lr": 1, "weight_decay": 3},
        {"lr": 2, "weight_decay": 0},
        {"lr": 2, "weight_decay": 3},
    )


def test_the_grid_wins_over_the_task_over_the_variant(tiny_study: Make) -> None:
    study = tiny_study(
        settings={"batch_size": 8, "lr": 1.0, "drop_path": 0.1},
        variants=[
            {
                "label": "a",
                "method": "linear_sgd",
                "settings": {"lr": 2.0, "drop_path": 0.2, "weight_decay": 0.2},
                "task_settings": {"count": {"lr": 3.0, "drop_path": 0.3}},
            }
        ],
        grid=[{"lr": 4.0}],
    )
    config = study.config(study.variants[0], study.tasks[0], study.grid[0], seed=7, refit=True)
    assert (config.lr, config.drop_path, config.weight_decay) == (4.0, 0.3, 0.2)
    assert (config.seed, config.refit, config.epochs) == (7, True, 1)


def test_a_factor_multiplies_the_methods_own_rate(tiny_study: Make) -> None:
    study = tiny_study(grid=[{"lr_factor": 3}])
    config = study.config(study.variants[0], study.tasks[0], study.grid[0], seed=0, refit=False)
    from vitune.methods import get_method

    assert config.lr == pytest.approx(3 * get_method("linear_sgd").default_lr(study.backbone))


def test_arguments_of_the_grid_join_those_of_the_variant(tiny_study: Make) -> None:
    study = tiny_study(
        variants=[{"label": "a", "method": "rlrr", "method_args": {"init": "identity"}}],
        grid=[{"method_args": {"rank": 2}}],
    )
    config = study.config(study.variants[0], study.tasks[0], study.grid[0], seed=0, refit=False)
    assert config.method_args == {"init": "identity", "rank": 2}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"variant": []}, "variant: unknown key. Did you mean variants"),
        ({"variants": []}, "variants: got"),
        ({"variants": [{"label": "a", "method": "rllr"}]}, "Did you mean 'rlrr'|Did you mean rlrr"),
        ({"variants": [{"label": "a", "method": "linear_sgd", "epoch": 1}]}, "unknown key"),
        ({"variants": [{"label": "a", "method": "linear_sgd"}] * 2}, "got 'a' twice"),
        (
            {"variants": [{"label": "a", "method": "rlrr", "method_args": {"rang": 1}}]},
            "got 'rang', expected an argument of 'rlrr'. Did you mean rank",
        ),
        ({"tasks": [{"name": "t", "data": "d"}] * 2}, "tasks: got 't' twice"),
        ({"seeds": [1, 1]}, "seeds: got '1' twice"),
        ({"grid": [{"seed": 1}]}, "setting: got 'seed', expected none that the protocol"),
        ({"grid": [{"learn_rate": 1}]}, "setting: got 'learn_rate', expected a training"),
        ({"grid": [{"lr": -1}]}, "lr: got -1"),
        ({"report_on": "train"}, "report_on: got 'train'"),
        ({"seeds": [0, -1]}, "seeds.1: got -1"),
        ({"selection_seeds": [2**64]}, "selection_seeds.0: got 18446744073709551616"),
        ({"settings": {"lr_factor": [1]}}, r"lr_factor: got \[1\], expected a number"),
        ({"settings": {"lr_factor": "ten"}}, "lr_factor: got 'ten', expected a number"),
        ({"settings": {"lr": 0.1, "lr_factor": 2}}, "got lr 0.1 and lr_factor 2, expected one"),
        ({"grid": [{"lr": 0.1}, {"lr": 1, "lr_factor": 2}]}, "got lr 1 and lr_factor 2"),
        ({"settings": {"method_args": None}}, "method_args: got None, expected names"),
        ({"grid": [{"method_args": [1]}]}, r"method_args: got \[1\], expected names"),
        ({"grid": [{"method_args": {"rang": 1}}]}, "got 'rang', expected an argument of"),
    ],
)
def test_a_mistake_is_named(tiny_study: Make, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(VituneError, match=match):
        tiny_study(**changes)


def test_a_recipe_is_read_before_any_run(tiny_study: Make) -> None:
    variant = {"label": "a", "method": "linear_sgd", "recipe": {"lag_epoch": 1}}
    with pytest.raises(VituneError, match=r"recipe: lag_epoch: .*lag_epochs"):
        tiny_study(variants=[variant], protocol="as-published")


@pytest.mark.parametrize("part", ["task_settings", "task_recipe"])
def test_a_task_of_another_study_is_named(tiny_study: Make, part: str) -> None:
    variant = {"label": "a", "method": "linear_sgd", part: {"cuont": {}}}
    study = tiny_study(variants=[variant], missing=("count",))
    with pytest.raises(VituneError, match=f"{part} of 'a': got 'cuont'.*Did you mean count"):
        study.require_known_tasks()
    tiny_study(
        variants=[{**variant, part: {"count": {}}}], missing=("count",)
    ).require_known_tasks()


def test_a_missing_key_is_named() -> None:
    with pytest.raises(VituneError, match=r"label: got nothing"):
        Variant.make({"method": "linear_sgd"})
    with pytest.raises(VituneError, match="keys should be strings"):
        Variant.make({"label": "a", "method": "linear_sgd", 1: "a"})


def test_a_study_survives_yaml(tiny_study: Make, tmp_path: Any) -> None:
    import yaml

    study = tiny_study(grid=[{"lr": 1e-3}], protocol="as-published")
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    assert Study.read(path) == study


def test_sgd_is_refused_at_the_rates_of_adamw(tiny_study: Make) -> None:
    with pytest.raises(VituneError, match="got optimiser 'sgd' without lr for 'linear_sgd'"):
        tiny_study(settings={"optimiser": "sgd"})
    study = tiny_study(settings={"optimiser": "sgd"}, grid=[{"lr": 0.5}, {"lr": 5.0}])
    config = study.config(study.variants[0], study.tasks[0], study.grid[1], seed=0, refit=True)
    assert (config.optimiser, config.lr) == ("sgd", 5.0)


def test_the_page_tells_the_rate_and_epochs_that_were_used(
    tmp_path: Path, bench: Workbench
) -> None:
    study = comparison_study(
        "demo:count?train=16&val=8&test=8",
        ["linear", "linear_sgd"],
        seeds=1,
        settings={"batch_size": 8, "epochs": 1, "lr_factor": 2},
    )
    text = compare(study, tmp_path, executor=InProcess(bench)).page.read_text()
    assert "1 epoch." in text
    assert ">given</small>" in text and ">default</small>" not in text and "0.02" in text
    rated = comparison_study("demo:count", ["linear", "linear_sgd"], lrs=[1e-3, 1e-2])
    assert [len(rated.grid_of(variant)) for variant in rated.variants] == [1, 2]
