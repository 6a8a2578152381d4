"""Optuna proposes, cells run, the best full-length trial is chosen; a kill loses no cell."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from study_parts import Bomb, Invented, KilledError

from vitune.bench.launching import suite_study
from vitune.bench.study.execution import InProcess
from vitune.bench.study.plan import Range, Search, Study
from vitune.bench.study.protocol import Planner, run_study
from vitune.bench.study.workbench import Workbench
from vitune.bench.tables.study_page import epochs_text
from vitune.errors import VituneError

optuna = pytest.importorskip("optuna", reason="the search extra is not installed")

Make = Callable[..., Study]
SPACE = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "weight_decay": [0.0, 0.1]}


class Judged(InProcess):
    """Validation accuracies as if low rates were better, so that pruning has something to go by."""

    def run(self, cells: Any, store: Any) -> Any:
        for result, reused in super().run(cells, store):
            yield replace(result, val=1 - result.config["lr"]), reused


def trials_of(folder: Path) -> list[Any]:
    storage = f"sqlite:///{folder / 'search.db'}"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


def test_tpe_proposes_and_the_best_is_refitted(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    study = tiny_study(search={"num_trials": 5, "num_parallel": 2, "space": SPACE}, seeds=[0, 1])
    outcome = run_study(study, tmp_path, executor=InProcess(bench))
    (choice,) = outcome.choices
    assert len(choice.tried) == 5 and len({s["lr"] for s, _ in choice.tried}) == 5
    assert all(1e-4 <= setting["lr"] <= 1e-1 for setting, _ in choice.tried)
    assert choice.val == max(value for _, value in choice.tried if value is not None)
    assert {(r.config["lr"], r.config["weight_decay"]) for r in outcome.results} == {
        (choice.setting["lr"], choice.setting["weight_decay"])
    }
    assert len(outcome.results) == 2
    again = run_study(study, tmp_path, executor=InProcess(bench))
    assert again.choices == outcome.choices and again.num_reused == 5 + 2


def test_asha_gives_few_trials_all_epochs(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    spec = {"pruner": "asha", "num_trials": 6, "num_parallel": 6, "eta": 2, "space": SPACE}
    study = tiny_study(search=spec, epochs=4)
    outcome = run_study(study, tmp_path, executor=Judged(bench))
    epochs = [result.config["epochs"] for result in outcome.selection]
    assert [epochs.count(rung) for rung in (1, 2, 4)] == sorted(
        (epochs.count(rung) for rung in (1, 2, 4)), reverse=True
    )
    assert epochs.count(1) == 6 > epochs.count(4) >= 1
    states = [trial.state.name for trial in trials_of(tmp_path)]
    assert states.count("PRUNED") == 6 - epochs.count(4)
    (choice,) = outcome.choices
    assert "epochs" not in choice.setting
    assert sum(value is not None for _, value in choice.tried) == epochs.count(4)
    assert all(result.config["epochs"] == 4 for result in outcome.results)


def test_rungs_lead_up_to_the_epochs_that_the_settings_ask_for(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    spec = {"pruner": "asha", "num_trials": 2, "num_parallel": 2, "eta": 2, "space": SPACE}
    study = tiny_study(search=spec, epochs=8, settings={"batch_size": 8, "epochs": 2})
    outcome = run_study(study, tmp_path, executor=Judged(bench))
    assert {result.config["epochs"] for result in outcome.selection} == {1, 2}
    assert Planner(study, bench).num_cells() == 2 * 2 + 1
    assert epochs_text(study) == "2 epochs"


@pytest.mark.parametrize("pruner", ["none", "asha"])
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_was_killed_ends_as_one_that_was_not(
    tiny_study: Make, bench: Workbench, tmp_path: Path, sampler: str, pruner: str
) -> None:
    spec = {"num_trials": 14, "num_parallel": 3, "eta": 2, "sampler": sampler, "pruner": pruner}
    study = tiny_study(search={**spec, "space": SPACE}, epochs=4)
    whole = run_study(study, tmp_path / "whole", executor=Invented(bench))
    told = len(whole.selection)
    assert told >= 14 and len({str(s) for s, _ in whole.choices[0].tried}) == 14
    killed = tmp_path / "killed"
    for after in (0, 1, 5, told // 2, told - 1):
        with pytest.raises(KilledError):
            run_study(study, killed, executor=Invented(bench), watcher=Bomb(after))
    resumed = run_study(study, killed, executor=Invented(bench))
    assert resumed.choices == whole.choices
    assert [r.address for r in resumed.selection] == [r.address for r in whole.selection]
    ends = [[(t.params, t.state, t.value) for t in trials_of(out)]
            for out in (tmp_path / "whole", killed)]  # fmt: skip
    assert ends[0] == ends[1]
    assert resumed.num_reused >= told - 1


def test_more_trials_go_on_from_those_there_are(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    few = tiny_study(search={"num_trials": 2, "num_parallel": 2, "space": SPACE})
    first = run_study(few, tmp_path, executor=InProcess(bench)).choices[0]
    more = tiny_study(search={"num_trials": 4, "num_parallel": 2, "space": SPACE})
    then = run_study(more, tmp_path, executor=InProcess(bench)).choices[0]
    assert then.tried[:2] == first.tried and len(then.tried) == 4
    assert (then.val or 0) >= (first.val or 0)


def test_a_trial_that_fails_is_no_choice(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    space = {"lr": [1e-2], "batch_size": [8], "clip_grad": [1.0], "weight_decay": [0.1]}
    study = tiny_study(search={"num_trials": 2, "num_parallel": 2, "space": space})

    class Broken(InProcess):
        def run(self, cells: Any, store: Any) -> Any:
            for result, reused in super().run(cells, store):
                yield replace(result, status="failed", val=None, error="no memory"), reused

    outcome = run_study(study, tmp_path, executor=Broken(bench))
    assert outcome.choices == ()
    (result,) = outcome.results  # the method keeps its place
    assert result.status == "failed" and str(result.error).endswith("finished: no memory")
    assert [t.state.name for t in trials_of(tmp_path)] == ["FAIL", "FAIL"]


def test_ranges_of_whole_numbers_give_whole_numbers(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    space = {"accumulation_steps": {"low": 1, "high": 6}, "batch_size": {"low": 2, "high": 8}}
    study = tiny_study(search={"num_trials": 6, "num_parallel": 6, "space": space})
    outcome = run_study(study, tmp_path, executor=Invented(bench))
    tried = [setting for setting, _ in outcome.choices[0].tried]
    assert all(isinstance(value, int) for setting in tried for value in setting.values())
    assert len({setting["accumulation_steps"] for setting in tried}) > 1
    log = tiny_study(
        search={"num_trials": 6, "space": {"batch_size": {"low": 1, "high": 16, "log": True}}}
    )
    outcome = run_study(log, tmp_path / "log", executor=Invented(bench))
    assert all(1 <= setting["batch_size"] <= 16 for setting, _ in outcome.choices[0].tried)


def test_rungs() -> None:
    asha = Search.make({"pruner": "asha", "eta": 3})
    assert asha.rungs(100) == (1, 3, 11, 33, 100)
    assert asha.rungs(2) == (2,)
    assert Search().rungs(100) == (100,)
    assert Search().space["lr_factor"] == Range(low=0.1, high=10.0, log=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": [{"lr": 1e-3}, {"lr": 1e-2}]}, "got a grid as well"),
        ({"grid": [{"lr": 1e-3}]}, "got a grid as well"),
        ({"search": {"space": {"lr": [0.1, "high", 0.2]}}}, "lr: got 'high'"),
        ({"search": {"space": {"lr": {"low": 1, "hgih": 2}}}}, "hgih: unknown key.*high"),
        ({"search": {"space": {"lrr": {"low": 1e-4, "high": 1e-2}}}}, "lrr"),
        ({"search": {"space": {"lr": {"low": 1e-2, "high": 1e-4}}}}, "expected low < high"),
        ({"search": {"space": {"lr": {"low": 0, "high": 1e-4, "log": True}}}}, "low > 0"),
        ({"search": {"space": {"batch_size": {"low": 4, "high": 8.5}}}}, "expected whole numbers"),
        ({"search": {"space": {"epochs": [1, 2]}}}, "rungs and refits set"),
        ({"search": {"space": {"lr": []}}}, "no choices of 'lr'"),
        ({"search": {"space": {"data": ["x"]}}}, "that the protocol sets"),
        ({"search": {"trials": 3}}, "trials: unknown key"),
        ({"search": {"sampler": "cma"}}, "sampler"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(
    tiny_study: Make, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(VituneError, match=message):
        tiny_study(**{"search": {"space": SPACE}, **changes})


def test_the_command_line_names_searches(tmp_path: Path) -> None:
    study = suite_study("demo", ["linear_sgd"], tmp_path, search="asha", trials=7, lrs=[1e-2, 1e-4])
    assert study.search is not None and study.search.pruner == "asha"
    assert study.search.num_trials == 7
    assert study.search.space == {"lr": Range(low=1e-4, high=1e-2, log=True)}
    with pytest.raises(VituneError, match="expected tpe or asha"):
        suite_study("demo", ["linear_sgd"], tmp_path, search="hyperband")


def test_without_optuna_the_message_says_how_to_get_it(
    tiny_study: Make, bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    study = tiny_study(search={"space": SPACE})
    with pytest.raises(VituneError, match=r"pip install 'vitune\[search\]'"):
        run_study(study, tmp_path, executor=InProcess(bench))
