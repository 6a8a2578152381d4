"""docs/reproduce.md: every study it starts is put together on fake data; ViT-B/16 takes a step."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

import vitune.bench.study.workbench as workbench_module
import vitune.training.ingredients as ingredients_module
from vitune.backbones import load_backbone
from vitune.bench.launching import LR_FACTORS, preset_study, seed_list, suite_study
from vitune.bench.presets import load_preset, preset_names
from vitune.bench.study.plan import Task
from vitune.bench.study.protocol import Planner, run_study
from vitune.bench.study.workbench import Workbench
from vitune.bench.suites.tiny_copies import write_fake
from vitune.cli import run
from vitune.errors import VituneError
from vitune.methods import get_method

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reproduce.md"


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("roots")
    for suite in ("vtab1k", "fgvc"):
        write_fake(base / suite, suite, side=16)
    return {suite: base / suite for suite in ("vtab1k", "fgvc")}


def test_every_preset_the_page_names_exists_and_starts(
    roots: dict[str, Path], tmp_path: Path
) -> None:
    named = set(re.findall(r"--preset ([\w-]+)", PAGE.read_text()))
    assert {"rlrr-vtab1k", "rlrr-fgvc", "rlrr-fgvc-augreg"} <= named <= set(preset_names())
    for name in named:
        suite = load_preset(name).suite
        for protocol in ("honest", "as-published"):
            study = preset_study(name, tmp_path, root=roots[suite], protocol=protocol)
            assert len(study.tasks) == {"vtab1k": 19, "fgvc": 5}[suite]
            cells = Planner(study, Workbench()).num_cells()
            settings = len(study.grid_of(study.variants[0])) if protocol == "honest" else 0
            assert cells == len(study.tasks) * (settings + 3)


def commands() -> list[str]:
    """Every vitune command in the page's blocks, lines joined and comments left out."""
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", PAGE.read_text(), re.S | re.M))
    lines = blocks.replace("\\\n", " ").splitlines()
    found = [line.partition("#")[0] for line in lines if line.startswith("vitune ")]
    return [" ".join(line.split()) for line in found]


def test_there_are_commands() -> None:
    assert len(commands()) >= 12


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_on_the_page_has_options_that_exist(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command.split()[1:], "--help"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--methods", "lora"], ["--lrs", "0.1"], ["--search", "tpe"], ["--defaults"]]
)
def test_a_recipe_has_its_own_methods_and_settings(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "run", "--preset", "rlrr-vtab1k", "--out", str(tmp_path), *words]
    assert run(command) == 2
    assert f"{words[0]}: got it with --preset" in " ".join(capsys.readouterr().err.split())


def test_the_counts_of_runs_on_the_page_are_right(roots: dict[str, Path], tmp_path: Path) -> None:
    counts = [
        Planner(preset_study(name, tmp_path, root=roots[suite]), Workbench()).num_cells()
        for name, suite in (("rlrr-vtab1k", "vtab1k"), ("rlrr-fgvc", "fgvc"))
    ]
    text = PAGE.read_text()
    assert f"{counts[0]} runs (19 tasks" in text and f"{counts[1]} runs each" in text


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "task"), [("rlrr-vtab1k", "cifar"), ("rlrr-fgvc", "cub")])
def test_a_real_vit_base_takes_one_step(
    preset: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained = partial(load_backbone, pretrained=False)
    monkeypatch.setattr(workbench_module, "load_backbone", untrained)
    monkeypatch.setattr(ingredients_module, "load_backbone", untrained)
    data = "demo:count?train=8&val=1&test=2"  # one batch; the suites' lists are tested above
    study = preset_study(
        preset,
        tmp_path,
        root=tmp_path,
        tasks=[Task(name=task, data=data)],
        epochs=1,
        seeds=1,
        overrides={"batch_size": 9, "lr": 1e-3, "weight_decay": 1e-4},
        report_on="test",
    )
    (result,) = run_study(study, tmp_path).results
    assert result.status == "done", result.error
    assert result.config["backbone"] == "vit_base_patch16_224.orig_in21k"
    assert result.counts["without_head"] == 288_768
    assert result.scores is not None and result.scores.num_images == 2


def test_methods_on_a_suite(roots: dict[str, Path], tmp_path: Path) -> None:
    study = suite_study(
        "vtab1k", ["linear_sgd", "rlrr"], tmp_path, root=roots["vtab1k"], seeds=[4, 5]
    )
    assert (study.epochs, study.seeds) == (100, (4, 5))
    rates = [setting["lr"] for setting in study.grid_of(study.variants[1])]
    usual = get_method("rlrr").default_lr(study.backbone)
    assert rates == pytest.approx([factor * usual for factor in LR_FACTORS])
    demo = suite_study("demo", ["linear_sgd"], tmp_path, lrs=[0.1], only=["digits"])
    assert (demo.epochs, demo.grid, len(demo.tasks)) == (3, ({"lr": 0.1},), 1)
    assert demo.settings == {"batch_size": 16}
    own = suite_study("demo", ["linear_sgd"], tmp_path, epochs=5, settings={"batch_size": 4})
    assert (own.epochs, own.settings) == (5, {"batch_size": 4})
    data = f"vtab:{roots['vtab1k']}/cifar"
    untuned = suite_study(data, ["rlrr"], tmp_path, tune=False)
    assert (untuned.name, untuned.tasks) == ("cifar", (Task(name="cifar", data=data),))
    assert untuned.grid_of(untuned.variants[0]) == ({},)
    with pytest.raises(VituneError, match="--defaults: got it with --search or --lrs"):
        suite_study(data, ["rlrr"], tmp_path, tune=False, lrs=[0.1])
    with pytest.raises(VituneError, match="epochs: got 0"):
        suite_study("demo", ["linear_sgd"], tmp_path, epochs=0)
    with pytest.raises(VituneError, match="--methods: got none"):
        suite_study("demo", [], tmp_path)
    with pytest.raises(VituneError, match="--seeds: got 0"):
        seed_list(0)


def test_tasks_that_are_missing_are_named_in_the_table(
    roots: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    from vitune.bench.study.protocol import read_missing, read_results
    from vitune.bench.tables.study_table import make_table

    shutil.copytree(roots["vtab1k"] / "svhn", tmp_path / "root" / "svhn")
    study = suite_study(
        "vtab1k", ["linear_sgd"], tmp_path, root=tmp_path / "root", allow_missing=True, seeds=1,
        epochs=1, lrs=[1e-3], settings={"batch_size": 4}, retention=False,
    )  # fmt: skip
    run_study(study, tmp_path / "out")
    out = tmp_path / "out"
    table = make_table(read_results(out), missing=read_missing(out))
    assert len(table.missing) == 18 and any("lacks 18 tasks" in note for note in table.notes)
    assert read_missing(tmp_path) == ()
