"""`spectrum(model)` from end to end, its summary, and the files and plots."""

from __future__ import annotations

import ast
import copy
import csv
import json
import math
from pathlib import Path

import pytest
import torch
from analysis_models import LINEARS, new_vit, perturb_trainable
from peft import LoraConfig, PeftModel, PolyConfig, get_peft_model
from torch import Tensor, nn

import vitune.analysis
from vitune.analysis import SpectrumReport, measure_retention, spectrum, write_spectrum
from vitune.analysis.run_plots import cka_plot, tradeoff_plot
from vitune.analysis.weight_plots import heat_maps, spectra_plot
from vitune.errors import VituneError
from vitune.methods.linear import LinearProbeConfig

SVG = b"<svg"


@pytest.fixture
def scaled_report() -> SpectrumReport:
    """Every linear of block 1 made 10 % larger, nothing else."""
    tuned = new_vit()
    with torch.no_grad():
        for module in tuned.blocks[1].modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(1.1)
    return spectrum(new_vit(), tuned)


def test_lora_of_rank_two_has_changes_of_rank_two(lora_vit: PeftModel, same_state) -> None:
    unchanged = same_state(lora_vit)
    seen: list[tuple[int, int, str]] = []
    report = spectrum(lora_vit, on_progress=lambda *at: seen.append(at))
    unchanged()
    assert [done for done, _, _ in seen] == list(range(1, 13))
    assert {total for _, total, _ in seen} == {12}
    assert seen[0][2] == "blocks.0.attn.qkv.weight"
    assert len(report.matrices) == 12
    for weight in report.matrices:
        assert weight.change is not None and weight.change.effective_rank is not None
        assert 1 < weight.change.effective_rank <= 2 + 1e-6
        assert 1 < weight.change.stable_rank <= 2
        assert weight.relative_deviation == pytest.approx(weight.change.relative_deviation)


def test_threads_neither_change_the_figures_nor_stay_changed(lora_vit: PeftModel) -> None:
    before = torch.get_num_threads()
    reports = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        settings = torch.__config__.parallel_info()
        reports.append(spectrum(lora_vit, exact_limit=4, top=(1, 8)))
        assert torch.__config__.parallel_info() == settings
    torch.set_num_threads(before)
    assert reports[0] == reports[1]


def test_summary_of_a_pure_scaling(scaled_report: SpectrumReport) -> None:
    assert [part.role for part in scaled_report.summary] == [
        *("q", "k", "v", "attn_out", "fc1", "fc2")
    ]
    for part in (*scaled_report.summary, scaled_report.overall):
        assert part.relative_deviation == pytest.approx(0.1)
        assert part.spectrum_distortion == pytest.approx(0.1)
        assert part.subspace_degrees == pytest.approx(0, abs=1e-5)
        assert part.left_loss == pytest.approx(0, abs=1e-6)
        assert part.num_intruders == 0
    assert scaled_report.overall.num_weights == 6
    assert scaled_report.num_unchanged == 7, "block 0 and the patch embedding"
    assert scaled_report.subspace_drift_degrees == pytest.approx(0, abs=1e-5)


def test_drift_counts_unchanged_weights_as_zero(lora_vit: PeftModel) -> None:
    report = spectrum(lora_vit)
    assert report.overall.subspace_degrees is not None
    assert report.num_unchanged == 1
    assert report.subspace_drift_degrees == pytest.approx(report.overall.subspace_degrees * 12 / 13)


def test_drift_is_unknown_where_a_method_does_more_than_change_weights() -> None:
    config = PolyConfig(target_modules=["fc1"], r=2, n_tasks=1)
    report = spectrum(get_peft_model(new_vit(), config))
    assert report.subspace_drift_degrees is None
    assert report.weights == ()
    probe = spectrum(get_peft_model(new_vit(), LinearProbeConfig()))
    assert probe.subspace_drift_degrees == 0


def test_vectors_have_only_a_deviation() -> None:
    tuned = new_vit()
    with torch.no_grad():
        tuned.norm.weight.mul_(1.25)
    report = spectrum(new_vit(), tuned)
    (weight,) = report.weights
    assert (weight.name, weight.role, weight.change) == ("norm.weight", "final_norm", None)
    assert weight.relative_deviation == pytest.approx(0.25)
    assert report.summary[0].relative_deviation == pytest.approx(0.25)
    assert report.summary[0].effective_rank is None


def test_a_weight_that_is_not_finite_is_named() -> None:
    tuned = new_vit()
    with torch.no_grad():
        tuned.blocks[0].mlp.fc1.weight[0, 0] = math.inf
    with pytest.raises(VituneError, match=r"blocks\.0\.mlp\.fc1\.weight, after: got 1 values"):
        spectrum(new_vit(), tuned)


def test_json_and_csv_hold_the_figures(scaled_report: SpectrumReport, tmp_path: Path) -> None:
    scaled_report.to_json(tmp_path / "report.json")
    scaled_report.to_csv(tmp_path / "report.csv")
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["summary"]["fc1"]["relative_deviation"] == pytest.approx(0.1)
    assert record["num_unchanged"] == 7
    first = record["weights"][0]["change"]
    assert len(first["values_before"]) == 24
    assert first["subspaces"][1]["k"] == 8
    assert len(first["subspaces"][1]["left_degrees"]) == 8
    lines = list(csv.DictReader((tmp_path / "report.csv").read_text().splitlines()))
    assert len(lines) == 6
    assert lines[0]["role"] == "q"
    assert float(lines[0]["top_8_left_max_degrees"]) < 1e-4
    assert float(lines[0]["relative_deviation"]) == pytest.approx(0.1)
    assert "energy_0.9_k" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.csv", "report.json"]


def test_folder_of_several_runs(lora_vit: PeftModel, images: Tensor, tmp_path: Path) -> None:
    other = get_peft_model(new_vit(), LoraConfig(target_modules=LINEARS, r=1))
    perturb_trainable(other, size=0.02)
    probe = get_peft_model(new_vit(), LinearProbeConfig())
    models = {"LoRA r=2": lora_vit, "LoRA r:2": other, "probe": probe}
    reports = {name: spectrum(model) for name, model in models.items()}
    kept = {name: measure_retention(model, [images]) for name, model in models.items()}
    accuracies = {"LoRA r=2": 0.8, "LoRA r:2": 0.7, "probe": 0.6}
    files = write_spectrum(tmp_path / "out", reports, accuracies, kept, validated={"probe"})
    assert sorted(path.name for path in files) == [
        "accuracy-drift.svg",
        "captions.json",
        "cka.svg",
        "heatmap-LoRA-r-2-2.svg",
        "heatmap-LoRA-r-2.svg",
        "spectra-LoRA-r-2-2.svg",
        "spectra-LoRA-r-2.svg",
        "spectrum.csv",
        "spectrum.json",
    ]
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    for path in files:
        if path.suffix == ".svg":
            assert path.read_bytes().startswith(SVG)
    record = json.loads((tmp_path / "out" / "spectrum.json").read_text())
    assert list(record["summary"]) == list(models)
    assert record["summary"]["probe"]["subspace_drift_degrees"] == 0
    assert record["runs"]["LoRA r=2"]["accuracy"] == 0.8
    on = {name: part["accuracy_on"] for name, part in record["summary"].items()}
    assert on == {"LoRA r=2": "test", "LoRA r:2": "test", "probe": "validation"}
    assert len(record["runs"]["LoRA r=2"]["retention"]["blocks"]) == 2
    lines = list(csv.DictReader((tmp_path / "out" / "spectrum.csv").read_text().splitlines()))
    assert [line["run"] for line in lines] == ["LoRA r=2"] * 12 + ["LoRA r:2"] * 12
    captions = json.loads((tmp_path / "out" / "captions.json").read_text())
    assert sorted(captions) == sorted(p.name for p in files if p.suffix == ".svg")


def test_folder_of_one_run_sums_up_by_role_and_draws_only_what_is_known(
    scaled_report: SpectrumReport, tmp_path: Path
) -> None:
    files = write_spectrum(tmp_path, {"run": scaled_report})
    assert sorted(path.name for path in files) == [
        "captions.json",
        "heatmap-run.svg",
        "spectra-run.svg",
        "spectrum.csv",
        "spectrum.json",
    ]
    record = json.loads((tmp_path / "spectrum.json").read_text())
    assert list(record["summary"]) == ["q", "k", "v", "attn_out", "fc1", "fc2"]
    assert record["runs"]["run"]["accuracy"] is None


def test_a_run_without_weights_still_gets_its_files(tmp_path: Path) -> None:
    report = spectrum(new_vit(), copy.deepcopy(new_vit()))
    files = write_spectrum(tmp_path, {"idle": report}, {"idle": 0.5})
    assert [path.name for path in files] == [
        "spectrum.json",
        "spectrum.csv",
        "captions.json",
        "accuracy-drift.svg",
    ]
    assert json.loads(files[0].read_text())["runs"]["idle"]["note"].startswith("No weight differs")


def test_randomised_reports_can_be_drawn_and_written(lora_vit: PeftModel, tmp_path: Path) -> None:
    report = spectrum(lora_vit, top=(1, 8), exact_limit=4)
    assert not any(weight.change.exact for weight in report.matrices if weight.change)
    write_spectrum(tmp_path, {"large": report})
    record = json.loads((tmp_path / "spectrum.json").read_text())
    assert record["summary"]["q"]["effective_rank"] is None
    assert record["summary"]["q"]["subspace_degrees"] > 0


def test_folder_refuses_what_does_not_fit(scaled_report: SpectrumReport, tmp_path: Path) -> None:
    with pytest.raises(VituneError, match=r"reports: got no run"):
        write_spectrum(tmp_path, {})
    with pytest.raises(VituneError, match=r"accuracies: got \['b'\], expected runs among \['a'\]"):
        write_spectrum(tmp_path, {"a": scaled_report}, {"b": 0.5})
    with pytest.raises(VituneError, match=r"accuracy of 'a': got 80, expected a share in"):
        write_spectrum(tmp_path, {"a": scaled_report}, {"a": 80})
    assert list(tmp_path.iterdir()) == []


def test_plots_refuse_what_they_cannot_draw() -> None:
    nothing = spectrum(new_vit(), new_vit())
    for draw in (spectra_plot, heat_maps):
        with pytest.raises(VituneError, match=r"run 'x': got no changed matrix.*No weight differs"):
            draw("x", nothing)
    with pytest.raises(VituneError, match=r"retentions: got none"):
        cka_plot({})
    with pytest.raises(VituneError, match=r"accuracies: got no run that has a drift too"):
        tradeoff_plot({"a": 1.0}, {"b": 0.5})


def test_many_dots_in_one_place_all_get_a_name() -> None:
    names = [f"run number {index}" for index in range(12)]
    content = tradeoff_plot(dict.fromkeys(names, 3.0), dict.fromkeys(names, 0.5))
    assert content.startswith(SVG)


def test_heavy_libraries_are_imported_only_where_they_are_used() -> None:
    files = list(Path(vitune.analysis.__file__).parent.glob("*.py"))
    assert len(files) > 10
    heavy = {"matplotlib", "peft", "transformers", "pandas", "sklearn", "pyarrow"}
    for file in files:
        for statement in ast.parse(file.read_text()).body:
            names = [alias.name for alias in getattr(statement, "names", [])]
            names.append(getattr(statement, "module", None) or "")
            assert not heavy & {name.split(".")[0] for name in names}, file
