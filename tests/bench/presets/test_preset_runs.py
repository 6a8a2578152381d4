"""Every preset on the fake copy of its suite: it loads, is estimated, and runs as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitune.bench.cost import estimate
from vitune.bench.launching import preset_study
from vitune.bench.presets import load_preset, preset_names
from vitune.bench.study.plan import Study
from vitune.bench.study.protocol import read_remarks, run_study
from vitune.bench.study.workbench import Workbench
from vitune.bench.suites.tiny_copies import write_fake
from vitune.cli import run

TASKS = {"vtab1k": "kitti", "fgvc": "cub"}  # wide images; wide, tall and square ones
BACKBONE = "vitune/vit_micro_patch4_32"


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("presets")
    for suite in TASKS:
        write_fake(base / suite, suite, side=12)
    return {suite: base / suite for suite in TASKS}


def tiny(name: str, protocol: Any, roots: dict[str, Path], out: Path) -> Study:
    """The preset with a small network and one epoch, everything else its own."""
    suite = load_preset(name).suite
    return preset_study(
        name, out, root=roots[suite], protocol=protocol, only=[TASKS[suite]], epochs=1, seeds=1,
        backbone=BACKBONE, image_size=8,
    )  # fmt: skip


HONEST = ("hta-fgvc", "rlrr-vtab1k")
PUBLISHED = ("pace-vtab1k", "rlrr-fgvc", "ssf-fgvc")
"""`make test` runs these, `make test-slow` all others, each under both protocols."""
CASES = [
    pytest.param(name, protocol, marks=[] if name in chosen else [pytest.mark.slow])
    for name in preset_names()
    for protocol, chosen in (("honest", HONEST), ("as-published", PUBLISHED))
]


@pytest.mark.parametrize(("name", "protocol"), CASES)
def test_a_preset_is_estimated_and_runs(
    name: str, protocol: Any, roots: dict[str, Path], tmp_path: Path
) -> None:
    study = tiny(name, protocol, roots, tmp_path)
    (row,) = estimate(study, Workbench())
    assert row.step_ms > 0 and row.num_cells == len(study.variants[0].grid or ()) * (
        protocol == "honest"
    ) + len(study.seeds)
    variant = study.variants[0]
    few = variant.model_copy(update={"grid": (variant.grid or ({},))[:2]})
    outcome = run_study(study.model_copy(update={"variants": (few,)}), tmp_path)
    assert [result.error for result in outcome.failures] == []
    (result,) = outcome.results
    assert result.status == "done" and result.scored_on == "test" and result.scores is not None
    assert result.config["batch_size"] >= 32  # the preset's own
    recipe = study.recipe_of(study.variants[0], study.tasks[0])
    if protocol == "honest":
        assert result.published is None and len(outcome.selection) == 2
        return
    assert result.published is not None
    epochs = 1 + recipe["cooldown_epochs"]
    assert result.config["epochs"] == epochs == result.published["scored_epochs"][-1]
    assert result.sizes["train"] == (128 if recipe["train_on"] == "train" else 144)
    assert read_remarks(tmp_path) == load_preset(name).remarks("as-published")


@pytest.mark.parametrize("name", ["rlrr-fgvc", pytest.param("arc-fgvc", marks=pytest.mark.slow)])
def test_a_dry_run_of_the_command(
    name: str, roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training images are kept larger than the network takes; scoring them once crashed."""
    command = ["bench", "run", "--preset", name, "--data-root", str(roots["fgvc"]), "--dry-run"]
    command += ["--backbone", BACKBONE, "--tasks", "cub", "--epochs", "1", "--seeds", "1"]
    assert run([*command, "--out", str(tmp_path)]) == 0
    assert "hours on this machine" in capsys.readouterr().out


def test_the_table_says_that_settings_are_the_same_on_all_tasks(
    roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "run", "--preset", "lora-vtab1k", "--data-root", str(roots["vtab1k"])]
    command += ["--backbone", BACKBONE, "--tasks", "svhn", "--epochs", "1", "--seeds", "1"]
    assert run([*command, "--protocol", "as-published", "--out", str(tmp_path)]) == 0
    assert run(["bench", "table", str(tmp_path / "as-published")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("the source prints no per-task settings") == 2
    assert "prints no per-task settings" in (tmp_path / "results.html").read_text()
