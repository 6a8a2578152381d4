"""What a study keeps: logits of every image, adapters on request; and analyze of a whole study."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import vitune.bench.study.kept_adapters as kept_module
from vitune.bench.study.execution import InProcess
from vitune.bench.study.kept import adapter_of, logits_file, read_logits, write_logits
from vitune.bench.study.kept_adapters import kept_adapters, methods_csv, over_seeds, runs_csv
from vitune.bench.study.plan import Study
from vitune.bench.study.protocol import run_study
from vitune.bench.study.scores import unpacked
from vitune.bench.study.store import Store
from vitune.bench.study.workbench import Workbench
from vitune.cli import run
from vitune.data import load_labelled
from vitune.data.split import Split
from vitune.errors import VituneError
from vitune.inference import load_run
from vitune.runs import weights_digest

Make = Callable[..., Any]


def test_logits_give_every_statistic_again(tiny_study: Make, photos: Make, tmp_path: Path) -> None:
    task = {"name": "photos", "data": str(photos())}
    study: Study = tiny_study(tasks=[task], settings={"batch_size": 4, "lr": 0.1}, seeds=[0, 1])
    outcome = run_study(study, tmp_path, executor=InProcess())
    assert outcome.num_reused == 0
    for result in outcome.results:
        assert result.scores is not None
        kept = read_logits(tmp_path, result.address)
        assert kept.logits.shape == (8, 2) and kept.logits.dtype == torch.float32
        right = kept.logits.argmax(1) == kept.labels
        assert right.tolist() == unpacked(result.scores.correct, 8).tolist()
        nll = F.cross_entropy(kept.logits, kept.labels).item()
        assert nll == pytest.approx(result.scores.nll, rel=2e-3)
    first, second = (read_logits(tmp_path, result.address) for result in outcome.results)
    assert torch.equal(first.ids, second.ids) and len(set(first.ids.tolist())) == 8
    assert not torch.equal(first.logits, second.logits)


def test_float16_keeps_the_order_of_the_classes_whatever_the_size(
    bench: Workbench, tiny_study: Make, tmp_path: Path
) -> None:
    study = tiny_study()
    config = study.config(study.variants[0], study.tasks[0], {}, seed=0, refit=False)
    split: Split = bench.open_test(config, bench.task(config, 0).refit.classes)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1.0, 1e3, 1e6):
        logits = size * torch.randn(len(split), 50, generator=generator)
        logits[:, 1] = logits.amax(1) * (1 + 1e-6 * torch.rand(len(split), generator=generator))
        write_logits(tmp_path, "a", logits, split)
        kept = read_logits(tmp_path, "a").logits
        assert torch.equal(kept.argmax(1), logits.argmax(1))
        probabilities = logits.double().softmax(1)
        assert (kept.double().softmax(1) - probabilities).abs().max() < 1e-3
        torch.testing.assert_close(kept.amax(1), logits.amax(1))
    assert logits_file(tmp_path, "a").stat().st_size < len(split) * (2 * 50 + 20) + 1000


def test_logits_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(VituneError, match=r"logits: got no file"):
        read_logits(tmp_path, "a")
    logits_file(tmp_path, "a").parent.mkdir()
    logits_file(tmp_path, "a").write_bytes(b"no tensors")
    with pytest.raises(VituneError, match=r"got a damaged file"):
        read_logits(tmp_path, "a")


@pytest.fixture(scope="module")
def kept_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """One method under a label of its own, and two seeds, with their adapters."""
    out = tmp_path_factory.mktemp("kept")
    study = Study.make(
        {
            "variants": [{"label": "rank 2", "method": "rlrr", "method_args": {"rank": 2}}],
            "tasks": [{"name": "count", "data": "demo:count?train=16&val=8&test=16"}],
            "epochs": 1,
            "settings": {"batch_size": 8, "lr": 0.05},
            "seeds": [0, 1],
            "retention": True,
            "keep": ["adapters"],
        }
    )
    run_study(study, out, executor=InProcess())
    return study, out


def test_a_kept_adapter_scores_as_its_run_did(kept_study: tuple[Study, Path]) -> None:
    kept = kept_adapters(out := kept_study[1])
    assert [one.name for one in kept] == ["rank 2-count-seed0", "rank 2-count-seed1"]
    for one in kept:
        loaded = load_run(one.folder, merge=False, device="cpu")
        split, _ = load_labelled(
            one.result.config["data"], loaded.card.preprocessing, classes=loaded.classes,
            split="test",
        )  # fmt: skip
        logits = torch.cat(list(loaded.logits(split)))
        assert one.result.scores is not None
        stored = read_logits(out, one.result.address).logits
        assert (logits - stored).abs().max() < 0.05 * stored.abs().max()
        accuracy = (logits.argmax(1).numpy() == split.labels).mean()
        assert accuracy == pytest.approx(one.result.scores.top1, abs=0.07)


def test_analyze_says_which_images_a_studys_accuracies_are_on(
    kept_study: tuple[Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = kept_study
    as_run = kept_adapters(out)[:1]
    for split, name in (("test", "test"), ("val", "validation")):
        kept = [replace(one, result=replace(one.result, scored_on=split)) for one in as_run]
        monkeypatch.setattr(kept_module, "kept_adapters", lambda _, kept=kept: kept)
        assert run(["analyze", str(out), "--out", str(tmp_path / split)]) == 0
        record = json.loads((tmp_path / split / "spectrum.json").read_text())
        assert [one["accuracy_on"] for one in record["runs"].values()] == [name]


def test_analyze_takes_a_study_and_aggregates_over_seeds(
    kept_study: tuple[Study, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = kept_study
    assert run(["analyze", str(out), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "rank 2" in printed and "over seeds" in printed
    rows = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert [(row["method"], row["seed"]) for row in rows] == [("rank 2", "0"), ("rank 2", "1")]
    (row,) = csv.DictReader((tmp_path / "methods.csv").read_text().splitlines())
    assert (row["num_runs"], row["num_seeds"]) == ("2", "2")
    by_seed = [float(r["relative_deviation"]) for r in rows]
    assert by_seed[0] != by_seed[1] and min(by_seed) > 0
    assert float(row["relative_deviation"]) == pytest.approx(sum(by_seed) / 2)
    spread = abs(by_seed[0] - by_seed[1]) / 2**0.5
    assert float(row["relative_deviation_std"]) == pytest.approx(spread)
    assert 0.5 < float(row["cka_last"]) <= 1
    runs = json.loads((tmp_path / "spectrum.json").read_text())["runs"]
    assert list(runs) == ["rank 2-count-seed0"]  # the first seed of each method and task


def test_a_study_without_adapters_says_how_to_keep_them(
    tiny_study: Make, bench: Workbench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run_study(tiny_study(), tmp_path, executor=InProcess(bench))
    (address,) = (result.address for result in outcome.results)
    assert run(["analyze", str(tmp_path)]) == 2
    assert "Run it again with --keep adapters" in capsys.readouterr().err
    keeping = tiny_study(keep=["adapters"])
    again = run_study(keeping, tmp_path, executor=InProcess(bench))
    assert again.num_reused == 0 and again.results[0].address == address
    assert adapter_of(tmp_path, address).is_dir()
    assert run_study(keeping, tmp_path, executor=InProcess(bench)).num_reused == 1
    assert len(kept_adapters(tmp_path)) == 1
    with pytest.raises(VituneError, match=r"keep.0: got 'adapter'"):
        tiny_study(keep=["adapter"])


def test_adapters_that_changed_places_are_told_and_trained_again(
    kept_study: tuple[Study, Path], tmp_path: Path
) -> None:
    study, kept = kept_study
    out = Path(shutil.copytree(kept, tmp_path / "out"))
    first, second = (one.folder for one in kept_adapters(out))
    digest = weights_digest(first)
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    with pytest.raises(VituneError, match=r"got other weights than rank 2-count-seed0 had"):
        kept_adapters(out)
    assert run_study(study, out, executor=InProcess()).num_reused == 0
    assert [one.folder for one in kept_adapters(out)] == [first, second]
    assert weights_digest(first) == digest


def test_stage_1_leaves_neither_logits_nor_adapters(
    tiny_study: Make, bench: Workbench, tmp_path: Path
) -> None:
    study = tiny_study(grid=[{"lr": 1e-3}, {"lr": 1e-2}], keep=["adapters"])
    run_study(study, tmp_path, executor=InProcess(bench))
    finals = {r.address for r in Store(tmp_path).results() if r.stage == "final"}
    assert {file.stem for file in (tmp_path / "logits").iterdir()} == finals
    assert {folder.name for folder in (tmp_path / "adapters").iterdir()} == finals


def test_a_spread_needs_every_task_of_every_seed(kept_study: tuple[Study, Path]) -> None:
    kept = kept_adapters(kept_study[1])
    both = [replace(one, result=replace(one.result, task=task)) for task in "tu" for one in kept]
    values: list[Any] = [(one, {"x": float(n), "y": None}) for n, one in enumerate(both)]
    (whole,) = over_seeds(values)
    assert (whole.means["x"], whole.stds["x"]) == (1.5, pytest.approx(0.5**0.5))
    assert whole.means["y"] is whole.stds["y"] is None
    (part,) = over_seeds(values[:-1])
    assert part.means["x"] is not None and part.stds["x"] is None
    assert methods_csv([part]).splitlines()[0] == "method,num_runs,num_seeds,x,x_std,y,y_std"
    assert len(runs_csv(values).splitlines()) == 5
